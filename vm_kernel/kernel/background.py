"""One blocking call in a thread of its own, whose end wakes the main loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Calls ``function`` in a daemon thread; ``wake`` is called, in that thread, when it has ended."""

    def __init__(self, function: Callable[[], T], wake: Callable[[], None]) -> None:
        self._function = function
        self._wake = wake
        self._value: T | None = None
        self._error: Exception | None = None
        self.done = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """What the function returned; raises what it raised. Only to be called when ``done``."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def wait(self, timeout_s: float) -> None:
        """Until it is done, or time is up."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._value = self._function()
        except Exception as error:
            self._error = error
        self.done = True
        self._wake()
