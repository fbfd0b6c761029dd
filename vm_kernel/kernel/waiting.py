"""Requests that wait, in order, for a VM; and what the first cell among them is told meanwhile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from vm_kernel.kernel.outlet import Outlet
from vm_kernel.kernel.requests import Request

#: seconds that a cell waits before it is told why
PATIENCE_S = 1.0
#: the pause between two lines doubles up to so many seconds: a minute of waiting fills no screen
MAX_PAUSE_S = 8.0


class WaitingRoom:
    """A queue of requests with a clock on the wall."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._queue: deque[Request] = deque()
        self._next_notice = 0.0
        self._pause = PATIENCE_S
        self._told = ""

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def has_cells(self) -> bool:
        """True if a cell waits."""
        return any(request.is_execute for request in self._queue)

    def admit(self, request: Request) -> None:
        """Queue a request."""
        if request.is_execute and not self.has_cells:
            self._pause = PATIENCE_S
            self._next_notice = time.monotonic() + self._pause
            self._told = ""
        self._queue.append(request)

    def first(self) -> Request | None:
        """Take out the request that came first; None if none is left."""
        return self._queue.popleft() if self._queue else None

    def leave(self) -> Iterator[Request]:
        """Take the requests out, one after the other."""
        while self._queue:
            yield self._queue.popleft()

    def take_cells(self) -> list[Request]:
        """Take out the cells, and leave everything else."""
        cells = [request for request in self._queue if request.is_execute]
        self._queue = deque(request for request in self._queue if not request.is_execute)
        return cells

    def notice_in_s(self, progress: str) -> float | None:
        """Seconds until the first cell is to be told something; None if there is nothing to tell."""
        if not self.has_cells or self._line(progress) == self._told:
            return None
        return max(0.0, self._next_notice - time.monotonic())

    def tell(self, progress: str) -> None:
        """Tell the first cell what it waits for, if it is time and it has not heard that yet."""
        if self.notice_in_s(progress) != 0.0:
            return
        first = next(request for request in self._queue if request.is_execute)
        self._told = self._line(progress)
        self._pause = min(2 * self._pause, MAX_PAUSE_S)
        self._next_notice = time.monotonic() + self._pause
        self._outlet.busy(first)
        self._outlet.publish("stream", {"name": "stderr", "text": self._told}, first)

    @staticmethod
    def _line(progress: str) -> str:
        return f"Waiting for a virtual machine: {progress}\n" if progress else "Waiting for a virtual machine.\n"
