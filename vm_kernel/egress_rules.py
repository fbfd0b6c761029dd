"""Which names and addresses a VM may reach through the host: the grammar of ``allow`` and ``allow_private``; checks.

An entry of ``allow`` is ``NAME`` or ``*.NAME``, each with an optional ``:PORT``. ``NAME`` is that very name, ``*.NAME``
every name below it and not itself. Without a port, 443 and 80 are meant; with one, that port alone. Names are of ASCII
letters, digits, ``-`` and ``_``, in any case; international ones in their ``xn--`` form. IP addresses are no names.

An entry of ``allow_private`` is a network such as ``10.1.0.0/16``: addresses in it may be connected to although they
are not public. Used by the configuration and by the proxy; nothing is resolved or connected here.
Standard library only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

DEFAULT_PORTS = (443, 80)
MAX_ENTRIES = 1000

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
#: the last label of what inet_aton() takes for an address: 127.1, 0x7f.1, 2130706433
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


#: where clouds keep their machines' credentials, and what is never meant: no setting opens these
_NEVER = _networks(
    "0.0.0.0/8",
    "169.254.0.0/16",  # link-local, and with 169.254.169.254 most clouds' metadata
    "100.100.100.200/32",
    "168.63.129.16/32",  # a public address, yet Azure's own
    "192.0.0.192/32",
    "224.0.0.0/3",  # multicast, reserved, broadcast
    "::/128",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "fd00:ec2::/32",
    "fd20:ce::/32",
)
#: IPv6 addresses that stand for IPv4 ones, or may: the address that is reached in the end would go unchecked
_TRANSLATED = _networks(
    "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16"
)
_LOOPBACK = ipaddress.IPv6Address("::1")
#: IPv4's carrier-grade NAT and old relays are no private networks for Python, in some versions
_NOT_PUBLIC = _networks("100.64.0.0/10", "192.88.99.0/24", "192.0.0.0/24", "3fff::/20", "5f00::/16", "2001::/23")


class Rule(NamedTuple):
    """One entry of ``allow``. name: in lower case; subdomains: the names below it, instead of itself."""

    name: str
    subdomains: bool
    ports: tuple[int, ...]

    def permits(self, name: str, port: int) -> bool:
        """Whether that name, in lower case, and port are meant."""
        if port not in self.ports:
            return False
        return name.endswith(f".{self.name}") if self.subdomains else name == self.name


class Rules:
    """A profile's. Raises ValueError that names the entry, what is wrong with it and what to write."""

    def __init__(self, allow: Iterable[str] = (), allow_private: Iterable[str] = ()) -> None:
        self.allow = [parse_rule(entry) for entry in allow]
        self.private = [parse_network(entry) for entry in allow_private]
        if len(self.allow) > MAX_ENTRIES or len(self.private) > MAX_ENTRIES:
            raise ValueError(f"has more than {MAX_ENTRIES} entries")

    def permits(self, name: str, port: int) -> bool:
        """Whether a VM may reach that port of that name. ``name`` as name_of() gives it."""
        return any(rule.permits(name, port) for rule in self.allow)

    def refusal(self, address: str) -> str:
        """Why an address that a permitted name resolves to must not be connected to; empty if it may be."""
        try:
            found = ipaddress.ip_address(address)
        except ValueError:  # with a zone, say
            return "an address that is none"
        if kind := _never(found):
            return kind
        if _within(found, self.private):
            return ""
        return "" if _is_public(found) else f"{_kind(found)} address"

    def is_private(self, address: str) -> bool:
        """Whether ``allow_private`` permits that address."""
        return _within(ipaddress.ip_address(address), self.private)


def name_of(host: str) -> str | None:
    """The name that a client asks for, in lower case; None if it is no name that ``allow`` could have."""
    name = host.lower().removesuffix(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels := name.split("."))):
        return None
    return None if _NUMBER.fullmatch(labels[-1]) else name


def parse_rule(entry: object) -> Rule:
    """One entry of ``allow``. Raises ValueError."""
    if not isinstance(entry, str):
        raise ValueError(f"{entry!r} is no text: write names in quotes, 'pypi.org'")
    text = entry.strip()
    if "/" in text:
        return _refuse(entry, "write the name alone, 'pypi.org', without https:// and path")
    if _is_address(text):
        return _refuse(entry, "an IP address is no name; write the name that leads to it")
    host, colon, digits = text.partition(":")
    ports = (int(digits),) if digits.isascii() and digits.isdigit() and len(digits) < 6 else DEFAULT_PORTS
    if colon and (ports == DEFAULT_PORTS or not 0 < ports[0] < 65536):
        return _refuse(entry, "its port must be a number from 1 to 65535")
    name = host.removeprefix("*.").lower()
    if not name.isascii():
        return _refuse(entry, f"write international names as {_ascii(name)!r}")
    if "*" in name:
        return _refuse(entry, "'*' can only stand at the beginning, '*.example.org', with a name behind it")
    if name.endswith(".") or name_of(name) is None:
        return _refuse(entry, "this is no name; write one like 'pypi.org' or '*.example.org:8443'")
    return Rule(name, host.startswith("*."), ports)


def parse_network(entry: object) -> Network:
    """One entry of ``allow_private``. Raises ValueError."""
    try:
        network = ipaddress.ip_network(str(entry)) if isinstance(entry, str) else None
    except ValueError as error:
        raise ValueError(f"{entry!r}: {error}; write a network such as '10.1.0.0/16' or '127.0.0.1/32'") from None
    if network is None:
        raise ValueError(f"{entry!r} is no text: write networks in quotes, '10.1.0.0/16'")
    never = any(network.version == other.version and network.subnet_of(other) for other in (*_NEVER, *_TRANSLATED))  # type: ignore[arg-type]
    if never and network != ipaddress.ip_network(_LOOPBACK):
        raise ValueError(f"{entry!r} is link-local, multicast, metadata or no destination: it cannot be allowed")
    return network


def _refuse(entry: str, what_to_do: str) -> Rule:
    raise ValueError(f"{entry!r}: {what_to_do}")


def _is_address(text: str) -> bool:
    host = text.partition("]")[0].removeprefix("[") if text.startswith("[") else text
    for candidate in (host, host.rpartition(":")[0]):
        try:
            ipaddress.ip_address(candidate)
        except ValueError:
            continue
        return True
    return False


def _ascii(name: str) -> str:
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return "xn--…"


def _never(address: Address) -> str:
    if address == _LOOPBACK:
        return ""
    if _within(address, _TRANSLATED):
        return "an IPv6 address that stands for an IPv4 one"
    return "a link-local, metadata, multicast or reserved address" if _within(address, _NEVER) else ""


def _is_public(address: Address) -> bool:
    return address.is_global and not address.is_multicast and not _within(address, _NOT_PUBLIC)


def _kind(address: Address) -> str:
    return "a loopback" if address.is_loopback else "a private" if address.is_private else "not a public"


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
