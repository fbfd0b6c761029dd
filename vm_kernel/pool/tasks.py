"""What a pool does beside its event loop: tasks that are waited for at the end, and threads for calls that block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


class Tasks:
    """The tasks of one pool, and its way into the service's executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start it; nobody need keep the task."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def in_executor(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a call that blocks. It goes on to its end even if whoever waits here is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def finished(self) -> None:
        """Wait for all of them, and for those that they start."""
        while self._running:
            await asyncio.wait(list(self._running))
