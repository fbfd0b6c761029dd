"""VMs that begin from a checkpoint instead of the golden snapshot: for a rollback, and for a fork."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from vm_kernel.pool import watch
from vm_kernel.pool.factory import Source
from vm_kernel.pool.state import LeaseHolder, PooledVM, VMState
from vm_kernel.vm.checkpoints import Checkpoint

if TYPE_CHECKING:
    from vm_kernel.pool.pool import ProfilePool


async def restore(
    pool: ProfilePool, source: Source, checkpoint: Checkpoint, holder: LeaseHolder, *, same_session: bool
) -> PooledVM:
    """A leased VM that goes on from a checkpoint, whose agent waits for THAW. Called for a rollback.

    It may be one more than ``max_vms``, for a moment: the VM that it replaces goes at once. Raises VMError.
    """
    ready: asyncio.Future[PooledVM] = asyncio.get_running_loop().create_future()
    pool.tasks.spawn(_restore(pool, source, checkpoint, same_session, ready))
    try:
        vm = await ready
    except BaseException:
        if ready.done() and not ready.cancelled() and ready.exception() is None:
            pool.release_soon(ready.result(), "its client left before it was served")
        raise
    watch.stop_stream(vm)
    vm.go(VMState.LEASED)
    vm.holder = holder
    return vm


async def fork(
    pool: ProfilePool, source: Source, checkpoint: Checkpoint, holder: LeaseHolder, tell: Callable[[str], None]
) -> PooledVM:
    """A VM of its own that begins from another session's checkpoint. Warm VMs make room for it.

    Raises PoolFull after ``acquire_timeout_s`` of a full pool or of too little memory, VMError.
    """
    # or the VM that is to be warm next would take the place of the one that made room
    pool.reserved += 1
    try:
        await _make_room(pool, source, tell)
        return await restore(pool, source, checkpoint, holder, same_session=False)
    finally:
        pool.reserved -= 1
        pool.refill()


async def _make_room(pool: ProfilePool, source: Source, tell: Callable[[str], None]) -> None:
    limit = asyncio.get_running_loop().time() + pool.config.acquire_timeout_s
    while True:
        if pool.ending is not None:
            raise pool.ending
        pool.refusal = pool.admission.refusal(source.golden.spec)
        if len(pool.vms) < pool.profile.max_vms and not pool.refusal:
            return
        if pool.warm:
            await pool.release(pool.warm.popleft(), "it makes room for a fork")
            continue
        tell(pool.queue.why())
        if asyncio.get_running_loop().time() > limit:
            raise pool.queue.too_long()
        await asyncio.sleep(0.1)


async def _restore(
    pool: ProfilePool, source: Source, checkpoint: Checkpoint, same_session: bool, ready: asyncio.Future[PooledVM]
) -> None:
    vm: PooledVM | None = None
    try:
        vm, shell = pool.begin(source)
        seconds = await pool.make(vm, source, pool.factory.restored_machine, shell, checkpoint, same_session)
    except Exception as error:
        if not ready.cancelled():
            ready.set_exception(error)
        return
    pool.restore_times.add(seconds)
    if pool.closed and pool.ending is not None and not ready.done():
        ready.set_exception(pool.ending)
    if ready.done():
        await pool.release(vm, "nobody waits for it any more")
    else:
        ready.set_result(vm)
