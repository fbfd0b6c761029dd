"""What waits to be written to a stream, at either end of it: whole frames, the urgent ones first."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable

from guest_agent.frames import Frame

#: bytes of small frames that are joined and written at once
_BATCH = 32 * 1024
#: buffers that one writev() may take, far below the system's limit
_MAX_BUFFERS = 64


class Outgoing:
    """A queue of frames. Large messages are not copied: their frames point into them."""

    def __init__(self) -> None:
        self._urgent: deque[Frame] = deque()
        self._bulk: deque[Frame] = deque()
        self._sending: Frame = []
        #: accepted and not yet written
        self.bytes = 0

    def add(self, frames: Iterable[Frame], urgent: bool) -> None:
        """Queue frames in order; urgent ones go ahead of all that are not, but never into the middle of one."""
        queue = self._urgent if urgent else self._bulk
        for frame in frames:
            queue.append(frame)
            self.bytes += sum(map(len, frame))

    def write(self, fd: int) -> bool:
        """Write what the descriptor takes now. True when nothing is left. Raises OSError if it is broken."""
        while self.bytes:
            if not self._sending:
                self._sending = self._next()
            try:
                written = os.writev(fd, self._sending)
            except (BlockingIOError, InterruptedError):
                return False
            self.bytes -= written
            self._drop(written)
        return True

    def clear(self) -> None:
        """Forget everything."""
        self._urgent.clear()
        self._bulk.clear()
        self._sending, self.bytes = [], 0

    def _next(self) -> Frame:
        queue = self._urgent or self._bulk
        buffers = queue.popleft()
        size = sum(map(len, buffers))
        while queue and size < _BATCH and len(buffers) < _MAX_BUFFERS:
            frame = queue.popleft()
            buffers = [*buffers, *frame]
            size += sum(map(len, frame))
        return buffers if len(buffers) == 1 or size >= 2 * _BATCH else [b"".join(buffers)]

    def _drop(self, written: int) -> None:
        """Take out what has been written."""
        while self._sending and written >= len(self._sending[0]):
            written -= len(self._sending.pop(0))
        if written:
            self._sending[0] = memoryview(self._sending[0])[written:]
