"""The waiting for a VM of one profile: until when, and what those who wait are told. Their order is in ``queue``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vm_kernel.errors import PoolFull, VMKernelError
from vm_kernel.pool.queue import LeaseQueue, full
from vm_kernel.pool.state import PooledVM, VMState

if TYPE_CHECKING:
    from vm_kernel.pool.pool import ProfilePool

_TICK_S = 0.25


class WaitingRoom:
    """Those who wait for a VM of one pool. ``len()`` is how many."""

    def __init__(self, pool: ProfilePool) -> None:
        self._pool = pool
        self._queue = LeaseQueue()

    def __len__(self) -> int:
        return len(self._queue)

    async def wait(self, tell: Callable[[str], None]) -> PooledVM:
        """Wait for one's turn. Raises PoolFull, and what fail() is called with."""
        pool = self._pool
        alone = not self._queue
        waiter = self._queue.join(tell, pool.config.max_queue)
        if alone:
            pool.tasks.spawn(self._watch())
        pool.refill()
        try:
            return await waiter.ready
        except BaseException:
            if waiter.ready.done() and not waiter.ready.cancelled() and waiter.ready.exception() is None:
                pool.release_soon(waiter.ready.result(), "its client left before it was served")
            raise
        finally:
            self._queue.leave(waiter)

    def serve(self, vm: PooledVM) -> bool:
        """Give a VM to the first. False if nobody waits."""
        return self._queue.serve(vm)

    def fail(self, error: VMKernelError) -> None:
        """Send everybody away."""
        self._queue.fail(error)

    def tell(self) -> None:
        """Tell everybody why they wait, and their place."""
        self._queue.tell(self.why(), self._coming())

    def why(self) -> str:
        """Why there is no VM now, to show to a person."""
        pool = self._pool
        if pool.source is None:
            return pool.golden.progress
        if pool.refusal:
            return pool.refusal
        if len(pool.vms) >= pool.profile.max_vms and not pool.count(VMState.BOOTING):
            return f"all {pool.profile.max_vms} VMs are in use"
        return "forking a VM from the golden snapshot"

    def too_long(self) -> PoolFull:
        """The error of who has waited for ``acquire_timeout_s``."""
        pool = self._pool
        return full(pool.profile, pool.config.acquire_timeout_s, pool.refusal)

    def _coming(self) -> int:
        """To how many of those who wait a VM is on its way. All, while the golden snapshot is being built."""
        pool = self._pool
        return len(self._queue) if pool.source is None else pool.count(VMState.BOOTING)

    async def _watch(self) -> None:
        """While somebody waits: see whether a VM can be made now, and let their time run out."""
        before = time.monotonic()
        while self._queue:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            timeout_s = self._pool.config.acquire_timeout_s
            self._queue.pass_time(now - before, self._coming(), timeout_s, self.too_long)
            before = now
            self._pool.refill()
