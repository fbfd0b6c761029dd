"""The guest's end of the stream: a non-blocking descriptor, a decoder, and what waits to be sent."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from typing import Any

from guest_agent.frames import JUPYTER_KINDS, Decoder, Kind, encode, encode_json

#: what a host may send
FROM_HOST = frozenset({Kind.SHELL, Kind.CONTROL, Kind.STDIN, Kind.UNIQUE, Kind.PING, Kind.INTERRUPT, Kind.CLOCK})
#: output goes in order behind what is queued, and the news of a death behind the output; the rest goes ahead of it
_BULK = frozenset({Kind.SHELL, Kind.IOPUB, Kind.KERNEL_DIED})


class Stream:
    """Messages over a descriptor. The agent's loop calls it when the descriptor is ready."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._decoder = Decoder(FROM_HOST)
        self._urgent: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._sending = memoryview(b"")

    @property
    def wants_write(self) -> bool:
        """True if something waits for the descriptor to become writable."""
        return bool(self._sending or self._urgent or self._bulk)

    def send(self, kind: Kind, body: bytes) -> None:
        """Queue one message. Jupyter kinds take packed parts."""
        (self._bulk if kind in _BULK else self._urgent).extend(encode(kind, body))

    def send_json(self, kind: Kind, fields: dict[str, Any]) -> None:
        """Queue one JSON message."""
        assert kind not in JUPYTER_KINDS
        (self._bulk if kind in _BULK else self._urgent).append(encode_json(kind, fields))

    def flush(self) -> None:
        """Write what the descriptor takes now. Raises EOFError if the host has gone."""
        while self.wants_write:
            if not self._sending:
                self._sending = memoryview((self._urgent or self._bulk).popleft())
            try:
                written = os.write(self.fd, self._sending)
            except BlockingIOError:
                return
            except OSError as error:
                raise EOFError(str(error)) from None
            self._sending = self._sending[written:]

    def receive(self) -> Iterator[tuple[Kind, bytes]]:
        """The messages that have arrived. Raises EOFError if the host has gone, FrameError on a violation."""
        try:
            data = os.read(self.fd, 256 * 1024)
        except BlockingIOError:
            return
        except OSError as error:
            raise EOFError(str(error)) from None
        if not data:
            raise EOFError("the host has closed the stream")
        yield from self._decoder.feed(data)
