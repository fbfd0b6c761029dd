"""The care for one profile's warm VMs: asks whether they are well, and replaces those that are old.

Leased VMs are never touched here. The age of the golden snapshot is looked after in ``golden``.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vm_kernel.errors import VMKernelError
from vm_kernel.guest import handshake
from vm_kernel.pool import watch
from vm_kernel.pool.failures import as_ours
from vm_kernel.pool.state import PooledVM, VMState

if TYPE_CHECKING:
    from vm_kernel.pool.pool import ProfilePool

_TURN_S = 1.0
#: a warm VM beyond min_warm is let go when it is so old
SURPLUS_S = 60.0


class Upkeep:
    """Looks after one pool once a second."""

    def __init__(self, pool: ProfilePool) -> None:
        self._pool = pool
        self._running: asyncio.Task[Any] | None = None

    def start(self) -> None:
        """Begin, if it has not begun."""
        if self._running is None:
            self._running = self._pool.tasks.spawn(self._run())

    def stop(self) -> None:
        """End it. What runs in threads ends by itself."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    async def leave_stream(self, vm: PooledVM) -> None:
        """Returns when no health check uses the VM's stream any more, so that it can be closed."""
        if vm.check is not None and vm.stream is not None:
            with suppress(OSError):
                vm.stream.shutdown(socket.SHUT_RDWR)
            await asyncio.wait([vm.check])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_TURN_S)
            try:
                await self._turn()
            except Exception:
                self._pool.log.exception("upkeep_failed")

    async def _turn(self) -> None:
        pool = self._pool
        await pool.shells.keep_only(pool.source, pool.config.prepared)
        self._destroy_stopped()
        pool.refill()
        pool.golden.renew_if_due()
        for vm in list(pool.warm):
            if self._check_is_due(vm):
                await self._check(vm)
        for vm in list(pool.warm):
            await self._replace_if_old(vm)

    def _destroy_stopped(self) -> None:
        pool = self._pool
        for vm in list(pool.warm):
            if vm.machine is not None and vm.machine.stopped:
                pool.vm_ended(vm, "its QEMU process was stopped")

    def _check_is_due(self, vm: PooledVM) -> bool:
        interval = self._pool.config.health_interval_s
        return bool(interval) and vm.state is VMState.WARM and time.monotonic() - vm.checked_at >= interval

    async def _check(self, vm: PooledVM) -> None:
        """Ask a warm VM how it is. It cannot be leased meanwhile: its stream has one reader at a time."""
        pool = self._pool
        if vm not in pool.warm or vm.stream is None:
            return
        pool.warm.remove(vm)
        watch.stop_stream(vm)
        vm.check = asyncio.ensure_future(self._ask(vm, vm.stream))
        error = await asyncio.shield(vm.check)
        vm.check, vm.checked_at = None, time.monotonic()
        if vm.state is not VMState.WARM:
            return
        if error is None:
            watch.start_stream(vm, pool.vm_ended)
            pool.offer(vm)
        else:
            pool.trouble.count("health")
            pool.log.warning("vm_unwell", vm=vm.name, error=error.message)
            pool.tasks.spawn(pool.release(vm, f"it was not well: {error.message}"))

    async def _ask(self, vm: PooledVM, stream: socket.socket) -> VMKernelError | None:
        pool = self._pool
        try:
            await pool.tasks.in_executor(handshake.check_health, stream, pool.config.health_timeout_s)
        except Exception as error:
            return as_ours(error, f"The health check of {vm.name} failed")
        return None

    async def _replace_if_old(self, vm: PooledVM) -> None:
        """First the new one, then the old one goes; unless there is no room for both."""
        pool, ttl_s = self._pool, self._pool.profile.ttl_s
        if vm not in pool.warm:
            return
        surplus = len(pool.warm) > pool.profile.min_warm
        if vm.source is not pool.source:
            cause = "its golden snapshot was replaced"
        elif ttl_s and vm.age_s > ttl_s:
            cause = "it was warm for long enough"
        elif surplus and vm.age_s > SURPLUS_S:
            cause = "it is not needed"
        else:
            return
        if not surplus:
            if pool.error is not None or pool.trouble.pause_s or pool.source is None:
                return
            room = len(pool.vms) < pool.profile.max_vms and not pool.admission.refusal(pool.profile)
            if room and not await pool.boot():
                return
        if vm in pool.warm:
            await pool.release(vm, cause)
