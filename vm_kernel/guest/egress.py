"""The host's end of the egress proxy of one session: what its VM asks for, what it may have, and what is noted of it.

Whoever has the guest stream makes one ``Egress`` for it, hands it the PROXY messages that arrive and has it pump() what
goes back. All that is hostile input. Names are resolved and connected to in egress_dial.py, bytes are moved by a thread
of egress_loop.py; both begin with the first connection that is permitted. The messages: ``guest_agent/proxy_link.py``.

Of the main loop's time this takes what a message takes: no look-up, connection or socket is waited for. In memory there
is a window and a bit for each connection in each direction.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from guest_agent.frames import FrameError, Kind, unpack_parts
from guest_agent.proxy_link import ALL, Op, Tunnel, pack, unpack
from vm_kernel.egress_rules import Rules, name_of
from vm_kernel.guest.egress_dial import Dialler, Refused

if TYPE_CHECKING:
    from vm_kernel.guest.egress_loop import Loop

#: bytes that wait in the guest stream; beyond, ours wait here, so that cells and interrupts stay ahead
MAX_AHEAD = 256 * 1024
#: bytes of all connections that wait here; beyond, nothing is read from the network
MAX_WAITING = 1024 * 1024
#: connections that may be asked for: so many a second in the long run, and so many at once
RATE_PER_S = 20.0
BURST = 200.0
#: characters of what a guest calls a host that are looked at, and bytes of its request
MAX_HOST = 255
MAX_REQUEST = 1024
#: notes that wait until the pool service can be told
MAX_NOTES = 1000
#: what a message without data counts
_OVERHEAD = 64
_PROFILE = "The profile {profile!r} of this session"


class Stream(Protocol):
    """Where messages to the guest go."""

    @property
    def queued_bytes(self) -> int: ...

    def send_parts(self, kind: Kind, parts: list[bytes]) -> None: ...


class Budget:
    """What one lease may still use, in all its VMs."""

    def __init__(self, max_mib: int) -> None:
        self.bytes_left = max_mib << 20 if max_mib else None
        self._allowance = BURST
        self._at = time.monotonic()
        #: attempts that were too many to be looked at or noted
        self.unnoted = 0

    @property
    def spent(self) -> bool:
        """Nothing is left."""
        return self.bytes_left is not None and self.bytes_left <= 0

    def spend(self, size: int) -> None:
        """So many bytes have gone or come."""
        if self.bytes_left is not None:
            self.bytes_left -= size

    def attempt(self) -> bool:
        """Whether one more connection may be asked for now."""
        now = time.monotonic()
        self._allowance = min(BURST, self._allowance + RATE_PER_S * (now - self._at))
        self._at = now
        if self._allowance < 1.0:
            self.unnoted += 1
            return False
        self._allowance -= 1.0
        return True


class Connection(Tunnel):
    """One that the guest has asked for. ``address`` is what it leads to, when that is known."""

    def __init__(self, number: int, send: Callable[[list[bytes]], None], host: str, port: int) -> None:
        super().__init__(number, send)
        self.host = host
        self.port = port
        self.address = ""
        self.begun = self.active = time.monotonic()
        #: why it is over; empty while it is not
        self.over = ""


class Egress:
    """Made with the fields of ``config_egress.Egress``, None for a session that may reach nothing: it says so.

    feed(), pump() and close() are for the main loop, from one thread; ``wake`` has it pump() soon, from any thread.
    ``note`` gets the fields of a note for the pool service and returns False if it could not be told.
    """

    def __init__(
        self,
        settings: dict[str, Any] | None,
        profile: str,
        wake: Callable[[], None],
        note: Callable[[dict[str, Any]], bool],
        budget: Budget | None = None,
    ) -> None:
        found = settings or {}
        self.rules = Rules(found.get("allow", ()), found.get("allow_private", ()))
        self.idle_s = float(found.get("idle_s", 300.0))
        self.budget = budget or Budget(int(found.get("max_mib", 0)))
        #: guards what follows; held for moments only
        self.lock = threading.RLock()
        self.connections: dict[int, Connection] = {}
        self._max_connections = int(found.get("max_connections", 0))
        self._profile = _PROFILE.format(profile=profile)
        self._wake = wake
        self._note = note
        self._notes: deque[dict[str, Any]] = deque(maxlen=MAX_NOTES)
        self._outbox: deque[list[bytes]] = deque()
        self._outbox_bytes = 0
        self._loop: Loop | None = None
        self._dialler = Dialler(self)
        self.closed = False

    # ---- for the main loop

    def begin(self) -> None:
        """Let the guest's programs use the proxy: the first thing that a VM of this session is told."""
        self.send(pack(Op.BEGIN, ALL))

    def feed(self, body: bytes) -> None:
        """A PROXY message has arrived. Never blocks, never raises: what is no message is dropped."""
        try:
            op, number, data = unpack(unpack_parts(body))
        except FrameError:
            return
        with self.lock:
            connection = self.connections.get(number)
            if op is Op.OPEN:
                self._asked(number, data)
            elif op is Op.RESET and number == ALL:
                for open_one in list(self.connections.values()):
                    self.drop(open_one, "the guest has dropped all connections", tell=False)
            elif connection is None:
                return  # it is over for us already
            elif op is Op.RESET:
                self.drop(connection, "the guest has closed it", tell=False)
            else:
                self._take(connection, op, data)
        if self._loop is not None:
            self._loop.wake()

    def pump(self, stream: Stream) -> None:
        """Give the guest stream what it should take now, and the pool service its notes. Call it often."""
        while stream.queued_bytes < MAX_AHEAD:
            with self.lock:
                if not self._outbox:
                    break
                had_room = self.has_room
                parts = self._outbox.popleft()
                self._outbox_bytes -= len(parts[1]) + _OVERHEAD
                wanted = self._loop is not None and self.has_room and not had_room
            stream.send_parts(Kind.PROXY, parts)
            if wanted and self._loop is not None:
                self._loop.wake()
        with self.lock:
            while self._notes and self._note(self._notes[0]):
                self._notes.popleft()

    def close(self) -> None:
        """The VM has ended or is given back: so have all connections. Safe to call twice."""
        with self.lock:
            self.closed = True
            for connection in list(self.connections.values()):
                self.drop(connection, "the session's VM has ended", tell=False)
            while self._notes and self._note(self._notes[0]):
                self._notes.popleft()
        if self._loop is not None:
            self._loop.wake()

    # ---- for everybody who holds the lock

    @property
    def has_room(self) -> bool:
        """False while the guest lags behind."""
        return self._outbox_bytes < MAX_WAITING

    def send(self, parts: list[bytes]) -> None:
        """A message for the guest, with the next pump()."""
        with self.lock:
            idle = not self._outbox
            self._outbox.append(parts)
            self._outbox_bytes += len(parts[1]) + _OVERHEAD
        if idle:
            self._wake()

    def connected(self, connection: Connection) -> None:
        """The dialler has connected it: its socket and its address are there."""
        self.send(pack(Op.OPENED, connection.number))
        self.say(connection, "opened", "")
        if self._loop is None:
            from vm_kernel.guest.egress_loop import Loop

            self._loop = Loop(self)
        self._loop.add(connection)

    def refuse(self, connection: Connection, refused: Refused) -> None:
        """It will not come to be."""
        if self.connections.pop(connection.number, None) is None:
            return
        connection.over = refused.reason
        self.say(connection, "refused" if refused.status == 403 else "failed", refused.reason)
        self._answer(connection.number, refused.status, refused.text)

    def drop(self, connection: Connection, why: str, tell: bool = True) -> None:
        """It is over. Its socket is closed by the thread that may be using it."""
        if self.connections.pop(connection.number, None) is None:
            return
        connection.over = why
        if tell:
            self.send(pack(Op.RESET, connection.number))
        self.say(connection, "closed" if connection.sock is not None else "failed", why)

    def say(self, connection: Connection, verdict: str, reason: str) -> None:
        """Note what has become of an attempt, for the pool service."""
        self._notes.append(
            {
                "verdict": verdict,
                "host": connection.host,
                "port": connection.port,
                "address": connection.address,
                "reason": reason[:200],
                "sent_bytes": connection.received,  # what the tunnel receives from the guest is sent to the network
                "received_bytes": connection.sent,
                "ms": round(1000 * (time.monotonic() - connection.begun), 1),
                "unnoted": self.budget.unnoted,
            }
        )
        self.budget.unnoted = 0
        self._wake()

    # ---- what the guest asks for

    def _asked(self, number: int, data: bytes) -> None:
        if number in self.connections or number == ALL:
            return
        if not self.has_room:  # a guest that asks and asks, and does not listen
            self.budget.unnoted += 1
            return
        if not self.budget.attempt():
            self._answer(number, 429, "too many connections have been asked for; wait a moment.")
            return
        host, port = _request(data)
        connection = Connection(number, self.send, host, port)
        self.connections[number] = connection
        refused = self._refusal(host, port)
        if refused is not None:
            self.refuse(connection, refused)
        else:
            self._dialler.dial(connection)

    def _refusal(self, host: str, port: int) -> Refused | None:
        """Why nobody even looks for that name; None if it may be reached."""
        name = name_of(host)
        if name is None:
            return Refused(403, f"{host} is no name", f"{host!r} is no name: VMs reach hosts by name alone.")
        if not self.rules.permits(name, port):
            entry = name if port in (80, 443) else f"{name}:{port}"
            text = f"{self._profile} may not reach {name}:{port}; its 'allow' (c.PoolConfig.profiles) lacks {entry!r}."
            return Refused(403, "not in 'allow'", text)
        if self.budget.spent:
            text = f"{self._profile} has used up what a session may transfer (c.PoolConfig.egress_max_mib)."
            return Refused(403, "egress_max_mib is used up", text)
        if len(self.connections) > self._max_connections:
            text = f"{self._profile} has {self._max_connections} connections (c.PoolConfig.egress_max_connections)."
            return Refused(503, "too many connections", text)
        return None

    def _take(self, connection: Connection, op: Op, data: bytes) -> None:
        try:
            connection.take(op, data)
        except FrameError:
            self.drop(connection, "the guest has broken the protocol")
            return
        connection.active = time.monotonic()
        if op is Op.DATA:
            self.budget.spend(len(data))

    def _answer(self, number: int, status: int, text: str) -> None:
        self.send(pack(Op.REFUSED, number, json.dumps({"status": status, "text": text}).encode()))


def _request(data: bytes) -> tuple[str, int]:
    """Host and port of an OPEN; a host that is none if it has none."""
    try:
        fields = json.loads(data) if len(data) <= MAX_REQUEST else {}
        host, port = fields.get("host"), fields.get("port")
    except (ValueError, AttributeError, RecursionError):
        host = port = None
    if not isinstance(host, str) or type(port) is not int or not 0 < port < 65536:
        return "?", 0
    return "".join(char if char.isascii() and char.isprintable() else "?" for char in host[:MAX_HOST]), port
