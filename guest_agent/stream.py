"""The guest's end of the stream: a non-blocking descriptor, a decoder, and what waits to be sent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from guest_agent.frames import JUPYTER_KINDS, Decoder, Kind, encode_json, encode_parts
from guest_agent.outgoing import Outgoing

#: what a host may send
FROM_HOST = frozenset(
    {
        Kind.SHELL,
        Kind.CONTROL,
        Kind.STDIN,
        Kind.FILES,
        Kind.PROXY,
        Kind.UNIQUE,
        Kind.PING,
        Kind.INTERRUPT,
        Kind.CLOCK,
        Kind.FREEZE,
        Kind.THAW,
    }
)
#: output goes in order behind what is queued, and the news of a death or of silence behind the output; the rest goes
#: ahead of it
_BULK = frozenset({Kind.SHELL, Kind.IOPUB, Kind.FILES, Kind.PROXY, Kind.KERNEL_DIED, Kind.FROZEN})
#: bytes taken in one turn, and what a virtio port gives at once
_READ = 256 * 1024
_PAGE = 4096
#: bytes that wait for the host; beyond, output stays in ipykernel's sockets
MAX_QUEUED = 8 * 1024 * 1024
#: bytes that wait for the host; beyond, what a cell's output could be stuck behind stays with the proxy
ROOM = 256 * 1024


class Stream:
    """Messages over a descriptor. The agent's loop calls it when the descriptor is ready."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._decoder = Decoder(FROM_HOST)
        self._outgoing = Outgoing()

    @property
    def wants_write(self) -> bool:
        """True if something waits for the descriptor to become writable."""
        return self._outgoing.bytes > 0

    @property
    def has_room(self) -> bool:
        """True while little waits: what is not a session's output may be added without delaying it."""
        return self._outgoing.bytes < ROOM

    @property
    def full(self) -> bool:
        """True while the host lags behind: add no output."""
        return self._outgoing.bytes > MAX_QUEUED

    def send(self, kind: Kind, parts: Sequence[bytes | memoryview]) -> None:
        """Queue one message of a Jupyter kind, FILES or PROXY."""
        self._outgoing.add(encode_parts(kind, parts), kind not in _BULK)

    def send_json(self, kind: Kind, fields: dict[str, Any]) -> None:
        """Queue one JSON message."""
        assert kind not in JUPYTER_KINDS
        self._outgoing.add([[encode_json(kind, fields)]], kind not in _BULK)

    def flush(self) -> None:
        """Write what the descriptor takes now. Raises EOFError if the host has gone."""
        try:
            self._outgoing.write(self.fd)
        except OSError as error:
            raise EOFError(str(error)) from None

    def receive(self) -> Iterator[tuple[Kind, bytes]]:
        """The messages that have arrived. Raises EOFError if the host has gone, FrameError on a violation."""
        try:
            data = os.read(self.fd, _READ)
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError(str(error)) from None
        if not data:
            raise EOFError("the host has closed the stream")
        yield from self._decoder.feed(data if len(data) < _PAGE else self._and_more(data))

    def _and_more(self, data: bytes) -> bytes:
        """What else there is: a virtio port gives a page at a time, and a turn of the loop for each would be slow."""
        pieces, size = [data], len(data)
        with contextlib.suppress(OSError):  # an end is noticed by the next call
            while size < _READ and (data := os.read(self.fd, _READ - size)):
                pieces.append(data)
                size += len(data)
        return b"".join(pieces)
