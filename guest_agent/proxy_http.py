"""The little of HTTP that the guest's end of the egress proxy needs: heads of requests, and answers of its own.

The proxy is the user's own, in the user's VM, and each connection leads to one server: whatever a request claims to be,
it reaches no more than the host permits for the name and port that it begins with. No sockets here.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

MAX_HEAD = 64 * 1024
_END = b"\r\n\r\n"
#: they are between client and proxy; the server is to close the connection after its answer, because the next request
#: may be for another
_DROPPED = (b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive")


class BadRequest(Exception):
    """A request that cannot be served; why."""


class Target(NamedTuple):
    """Where a request wants to go. head: what the server is to get of it; empty for CONNECT."""

    host: str
    port: int
    head: bytes


def split_head(data: bytes | bytearray) -> tuple[bytes, bytes] | None:
    """The head of a request and what follows it; None if more has to come. Raises BadRequest."""
    end = data.find(_END)
    if end < 0 and len(data) <= MAX_HEAD:
        return None
    if not 0 <= end <= MAX_HEAD:
        raise BadRequest("the head of the request is too large")
    return bytes(data[:end]), bytes(data[end + len(_END) :])


def parse_head(head: bytes) -> Target:
    """Where a request goes: ``CONNECT name:port``, or another method with ``http://name/…``. Raises BadRequest."""
    line, *fields = head.split(b"\r\n")
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise BadRequest("not a request of HTTP/1")
    method, url, version = words
    if method == b"CONNECT":
        return Target(*_authority(url, None), b"")
    scheme, _, rest = url.partition(b"://")
    if scheme.lower() != b"http" or not rest:
        raise BadRequest("this is a proxy: it wants CONNECT, or a URL that begins with http://")
    end = min((at for at in map(rest.find, (b"/", b"?", b"#")) if at >= 0), default=len(rest))
    host, port = _authority(rest[:end], 80)
    path = rest[end:] if rest[end : end + 1] == b"/" else b"/" + rest[end:]
    kept = [field for field in fields if field.partition(b":")[0].strip().lower() not in _DROPPED]
    return Target(host, port, b"\r\n".join([b" ".join((method, path, version)), *kept, b"Connection: close"]) + _END)


def answer(status: int, text: str) -> bytes:
    """A whole response that says why there is none. The reason is in its first line, too: many clients show no more."""
    reason = HTTPStatus(status).phrase
    line = " ".join(f"{reason}: {text}".split()).encode("ascii", "replace")[:400]
    body = text.encode() + b"\n"
    return b"HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close%s" % (
        status,
        line,
        len(body),
        _END + body,
    )


def _authority(text: bytes, default_port: int | None) -> tuple[str, int]:
    if not text.isascii() or b"@" in text:
        raise BadRequest("a host with a user, or not in ASCII")
    host, colon, digits = text.decode().rpartition(":")
    if not colon or digits.endswith("]"):
        host, digits = text.decode(), str(default_port or "")
    if not host or not digits.isdigit() or len(digits) > 5 or not 0 < int(digits) < 65536:
        raise BadRequest("a host without a name, or without a port")
    return host.removeprefix("[").removesuffix("]"), int(digits)
