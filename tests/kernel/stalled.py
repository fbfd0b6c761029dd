"""A pool service that is there and does not answer: stopped by SIGSTOP, for a while."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.conftest import service_pid


@contextmanager
def stalled_pool() -> Iterator[Callable[[], None]]:
    """The running pool service stands still; the function that is given lets it go on."""
    pid = service_pid()
    os.kill(pid, signal.SIGSTOP)

    def go_on() -> None:
        os.kill(pid, signal.SIGCONT)

    try:
        yield go_on
    finally:
        go_on()
