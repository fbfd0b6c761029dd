"""Resolves permitted names and connects to their addresses, on the host, in threads: both may take long.

A name is looked up once, each of its addresses is checked, and what is connected to is a checked address itself: what
the name says a moment later changes nothing. Only names that the rules permit come here, so look-ups tell nobody
anything that the rules do not.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vm_kernel.egress_rules import Rules
    from vm_kernel.guest.egress import Connection, Egress

#: names that are looked up or connected to at the same time; further ones wait
MAX_THREADS = 16
#: seconds for one address, and addresses that are tried
CONNECT_S = 10.0
MAX_ADDRESSES = 4

Resolve = Callable[[str, int], list[str]]


class Refused(NamedTuple):
    """Why there is no connection. status: of HTTP; reason: for the log; text: for the user."""

    status: int
    reason: str
    text: str


class Reached(NamedTuple):
    """A connection, and the address that it leads to."""

    sock: socket.socket
    address: str


class Dialler:
    """Of one session."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._waiting: deque[Connection] = deque()
        self._threads = 0

    def dial(self, connection: Connection) -> None:
        """Look up and connect, in a thread. The caller holds the lock."""
        self._waiting.append(connection)
        if self._threads < MAX_THREADS:
            self._threads += 1
            threading.Thread(target=self._work, name="egress-dial", daemon=True).start()

    def _work(self) -> None:
        egress = self._egress
        while True:
            with egress.lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                connection = self._waiting.popleft()
            if connection.over:
                continue
            found = reach(connection.host, connection.port, egress.rules)
            with egress.lock:
                if isinstance(found, Refused):
                    egress.refuse(connection, found)
                elif connection.over:  # nobody wants it any more
                    found.sock.close()
                else:
                    found.sock.setblocking(False)
                    connection.sock, connection.address = found
                    egress.connected(connection)


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, in the order in which the system would try them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def reach(host: str, port: int, rules: Rules, lookup: Resolve = resolve) -> Reached | Refused:
    """A connection to a permitted name, or why there is none."""
    name = host.lower().removesuffix(".")
    try:
        addresses = lookup(name, port)
    except (OSError, UnicodeError) as error:
        return Refused(502, f"cannot be resolved: {error}"[:200], f"the host cannot resolve {name}: {error}.")
    refusals = {address: rules.refusal(address) or _own(address, port, rules) for address in addresses}
    permitted = [address for address in addresses if not refusals[address]]
    if not permitted:
        address, kind = next(iter(refusals.items()), ("nothing", "no address"))
        hint = " 'allow_private' in c.PoolConfig.profiles could permit it." if kind.endswith(" address") else ""
        return Refused(403, f"{address}: {kind}", f"{name} leads to {address}, {kind}, which a VM may not reach.{hint}")
    last: OSError = OSError("no address")
    for address in permitted[:MAX_ADDRESSES]:
        try:
            return Reached(_connect(address, port), address)
        except OSError as error:
            last = error
    said = last.strerror or str(last)
    return Refused(502, f"{permitted[0]}: {said}"[:200], f"the host cannot connect to {name}:{port}: {said}.")


def _connect(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect((address, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _own(address: str, port: int, rules: Rules) -> str:
    """Whether a public address is this very host's, whose services may trust who comes from here."""
    if rules.is_private(address):
        return ""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((address, port))  # nothing is sent: it only chooses the address that would be sent from
            return "this host's own address" if sock.getsockname()[0] == sock.getpeername()[0] else ""
        except OSError:
            return ""
