"""Who waits for a VM of one profile, in the order in which they came. Who is served, and why not, the pool decides."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from vm_kernel.config import Profile
from vm_kernel.errors import PoolFull, VMKernelError
from vm_kernel.pool.state import PooledVM


@dataclass(eq=False)
class Waiter:
    """One lease request that has no VM yet. ``blocked_s``: how long there was no VM on its way to it, in seconds."""

    ready: asyncio.Future[PooledVM]
    tell: Callable[[str], None]
    blocked_s: float = 0.0


class LeaseQueue:
    """First come, first served. ``len()`` is how many wait."""

    def __init__(self) -> None:
        self._waiters: deque[Waiter] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    def join(self, tell: Callable[[str], None], limit: int) -> Waiter:
        """Stand at the end. Raises PoolFull if ``limit`` wait already."""
        if len(self._waiters) >= limit:
            raise PoolFull(
                f"No VM is free, and {len(self._waiters)} requests are waiting for one already, which is the limit.",
                "Try again later, or raise c.PoolConfig.max_vms or max_queue in vm_kernel_config.py.",
            )
        waiter = Waiter(asyncio.get_running_loop().create_future(), tell)
        self._waiters.append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        """Stand there no longer, served or not."""
        with suppress(ValueError):
            self._waiters.remove(waiter)

    def serve(self, vm: PooledVM) -> bool:
        """Give a VM to the first. False if nobody waits."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.ready.done():
                waiter.ready.set_result(vm)
                return True
        return False

    def fail(self, error: VMKernelError) -> None:
        """Send everybody away."""
        while self._waiters:
            _fail(self._waiters.popleft(), error)

    def tell(self, why: str, served_soon: int) -> None:
        """Tell everybody why they wait. For the first ``served_soon`` a VM is coming; the others learn their place."""
        total = len(self._waiters)
        for place, waiter in enumerate(self._waiters, 1):
            waiter.tell(why if place <= served_soon else f"{why}; place {place} of {total} in the queue")

    def pass_time(self, seconds: float, served_soon: int, timeout_s: float, error: Callable[[], VMKernelError]) -> None:
        """Count the time of those to whom no VM is on its way; send away who has waited for ``timeout_s``."""
        for waiter in list(self._waiters)[served_soon:]:
            waiter.blocked_s += seconds
            if waiter.blocked_s >= timeout_s:
                self._waiters.remove(waiter)
                _fail(waiter, error())


def full(profile: Profile, timeout_s: float, refusal: str) -> PoolFull:
    """The error of who has waited for ``timeout_s``; ``refusal`` if it was the host's memory that lacked."""
    waited = f"within {timeout_s:g} s"
    if refusal:
        return PoolFull(
            f"No VM became free {waited}, and {refusal}.",
            "Shut down a notebook that you do not need, free memory, or lower c.PoolConfig.vm_memory_mib (or raise "
            "memory_overcommit) in vm_kernel_config.py; then run the cell again.",
        )
    return PoolFull(
        f"All {profile.max_vms} VMs of profile {profile.name!r} are in use and none became free {waited}.",
        "Shut down a notebook that you do not need (`vm-kernel pool status` shows who has a VM), "
        "or raise c.PoolConfig.max_vms in vm_kernel_config.py; then run the cell again.",
    )


def _fail(waiter: Waiter, error: VMKernelError) -> None:
    if not waiter.ready.done():
        waiter.ready.set_exception(error)
