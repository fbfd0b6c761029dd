"""The VMs of one profile: made, handed out, destroyed. Runs on the service's event loop, in one thread.

Whatever blocks (libvirt, the guest handshake) is done by ``VMFactory`` in the service's executor. Who waits is in
``waiting``, what went wrong in ``failures``, what VMs are forked from in ``golden``, the care for warm VMs in
``upkeep``, the start of QEMUs ahead in ``shells``.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any

import structlog

from vm_kernel.config import PoolConfig, Profile
from vm_kernel.errors import GoldenError, VMKernelError
from vm_kernel.pool import watch
from vm_kernel.pool.admission import Admission
from vm_kernel.pool.factory import Source, VMFactory, WarmMachine
from vm_kernel.pool.failures import Failures, as_ours
from vm_kernel.pool.golden import GoldenKeeper
from vm_kernel.pool.metrics import Durations
from vm_kernel.pool.shells import Shells
from vm_kernel.pool.state import LeaseHolder, PooledVM, VMState
from vm_kernel.pool.tasks import Tasks
from vm_kernel.pool.upkeep import Upkeep
from vm_kernel.pool.waiting import WaitingRoom
from vm_kernel.vm.machine import PreparedMachine

#: a clone that is not warm after so long has its QEMU killed
BOOT_TIMEOUT_S = 90.0
#: seconds from a lease to the making of the next VM, which would slow the hand-over down
REFILL_DELAY_S = 0.01


class ProfilePool:
    """Keeps ``min_warm`` VMs of one profile ready and never has more than ``max_vms``."""

    def __init__(
        self, profile: Profile, config: PoolConfig, factory: VMFactory, executor: Executor, admission: Admission
    ) -> None:
        self.profile = profile
        self.config = config
        self.admission = admission
        self.factory = factory
        #: why no VM can be made, while the profile is broken
        self.error: VMKernelError | None = None
        #: why no lease is served any more: the service stops, or the profile was removed
        self.ending: VMKernelError | None = None
        #: leases have to end, too
        self.closed = False
        #: why the host has no room for another VM, if it was asked last time and had none
        self.refusal = ""
        #: places of ``max_vms`` that are kept for forks
        self.reserved = 0
        self.vms: set[PooledVM] = set()
        self.warm: deque[PooledVM] = deque()
        self.clone_times = Durations()
        self.restore_times = Durations()
        self.trouble = Failures()
        self.tasks = Tasks(executor)
        self.shells = Shells(factory, self.tasks, profile.name)
        self.log = structlog.get_logger().bind(profile=profile.name)
        self.queue = WaitingRoom(self)
        self._retry: asyncio.TimerHandle | None = None
        self.golden = GoldenKeeper(self)
        self._upkeep = Upkeep(self)

    @property
    def source(self) -> Source | None:
        """What VMs are forked from now; None while there is no golden snapshot."""
        return self.golden.source

    @property
    def waiting(self) -> int:
        """Lease requests that have no VM yet."""
        return len(self.queue)

    @property
    def failures_by_cause(self) -> dict[str, int]:
        """Failures since the service started, see ``failures.Failures``."""
        return dict(self.trouble.by_cause)

    @property
    def failures(self) -> int:
        """All failures since the service started."""
        return self.trouble.total

    def count(self, state: VMState) -> int:
        """VMs in that state."""
        return sum(vm.state is state for vm in self.vms)

    @property
    def state(self) -> str:
        """``ok``, ``building`` (no golden snapshot yet), ``broken`` (the last tries failed) or ``ending``."""
        if self.ending is not None:
            return "ending"
        if self.error is not None:
            return "broken"
        return "ok" if self.source is not None else "building"

    @property
    def detail(self) -> str:
        """What there is to say about the state; empty if all is well."""
        for problem in (self.ending, self.error):
            if problem is not None:
                return problem.message
        return self.golden.progress or self.refusal or self.golden.notice

    def start(self) -> None:
        """Load or build the golden snapshot and fill the pool, in the background. Again if that has failed."""
        if self.ending is not None:
            return
        self._upkeep.start()
        self.golden.open()

    def take(self, holder: LeaseHolder) -> PooledVM | None:
        """Hand out a warm VM; None if there is none. Raises PoolUnavailable or UnknownProfile if the pool ends."""
        if self.ending is not None:
            raise self.ending
        self.start()
        vm = None if self.queue else self._take_warm()
        return None if vm is None else self._lease(vm, holder)

    async def acquire(self, holder: LeaseHolder, tell: Callable[[str], None]) -> PooledVM:
        """Hand out a warm VM; wait for one if there is none. ``tell`` gets the reason for the wait, in words.

        Raises PoolFull after ``acquire_timeout_s`` of a full pool or if too many wait, what the factory raised if VMs
        cannot be made, PoolUnavailable or UnknownProfile if the pool ends.
        """
        return self.take(holder) or self._lease(await self.queue.wait(tell), holder)

    def _lease(self, vm: PooledVM, holder: LeaseHolder) -> PooledVM:
        watch.stop_stream(vm)
        vm.go(VMState.LEASED)
        vm.holder = holder
        # others who ask at the same moment get theirs first
        asyncio.get_running_loop().call_later(REFILL_DELAY_S, self.refill)
        return vm

    def take_prepared(self) -> PreparedMachine | None:
        """A QEMU that waits for a state of the present golden snapshot, from now on the caller's. Does not block."""
        shell = self.shells.take(self.source) if self.source is not None else None
        self._fill_shells()
        return shell

    async def release(self, vm: PooledVM, cause: str) -> None:
        """Destroy a VM, whatever its state. Safe to call twice."""
        if vm.state in (VMState.DYING, VMState.DEAD):
            return
        vm.go(VMState.DYING)
        watch.stop(vm)
        with suppress(ValueError):
            self.warm.remove(vm)
        if vm.stream is not None:
            await self._upkeep.leave_stream(vm)
            vm.stream.close()
        if vm.machine is not None:
            try:
                await self.tasks.in_executor(vm.machine.destroy)
            except Exception as error:
                self.log.exception("destroy_failed", vm=vm.name, error=str(error))
        vm.go(VMState.DEAD)
        self.vms.discard(vm)
        self.log.info("vm_destroyed", vm=vm.name, cause=cause, age_s=round(vm.age_s, 1))
        self.refill()

    def release_soon(self, vm: PooledVM, cause: str) -> None:
        """release(), without waiting for it."""
        self.tasks.spawn(self.release(vm, cause))

    def vm_ended(self, vm: PooledVM, cause: str) -> None:
        """Clear a VM that ended or misbehaved by itself, and tell its holder."""
        if not vm.ended.done():
            vm.ended.set_result(cause)
        if vm.state is VMState.WARM:
            self.trouble.count("ended")
        self.log.warning("vm_ended", vm=vm.name, state=vm.state.value, cause=cause)
        with suppress(ValueError):
            self.warm.remove(vm)
        self.release_soon(vm, cause)

    def refill(self) -> None:
        """Start as many clones as are missing and allowed."""
        self.refusal = ""
        if self.ending is None and self.source is not None and not self.trouble.pause_s:
            booting = self.count(VMState.BOOTING)
            # a VM whose health is being checked will be back; but who waits does not wait for that
            kept = len(self.warm) + sum(vm.check is not None for vm in self.vms)
            wanted = max(self.profile.min_warm - kept, len(self.queue) - len(self.warm)) - booting
            # one is tried, wanted or not, to see whether a broken profile works again;
            # and more clones at a time than cores only make each of them later
            at_once = (os.cpu_count() or 1) if self.error is None else 1
            wanted = max(wanted, 0 if self.error is None else 1)
            room = self.profile.max_vms - len(self.vms) - self.reserved
            for _ in range(min(wanted, room, at_once - booting)):
                self.refusal = self.admission.refusal(self.profile)
                if self.refusal:
                    break
                self.tasks.spawn(self._begin_boot(self.source))
            self._fill_shells()
        self.queue.tell()

    async def boot(self) -> bool:
        """Make one VM beyond what is wanted. False if that failed."""
        return self.source is not None and await self._begin_boot(self.source)

    def configure(self, profile: Profile, config: PoolConfig) -> None:
        """Go on with other settings. No lease is touched; VMs of the old kind are replaced when the new can be made."""
        self.profile, self.config, self.ending = profile, config, None
        if self.source is not None:
            self._upkeep.start()
            self.tasks.spawn(self.golden.renew_if_changed())
        self.refill()

    async def end(self, error: VMKernelError) -> None:
        """Serve no lease any more: who waits gets ``error``, warm VMs go. Leases go on until close()."""
        self.ending = error
        self.queue.fail(error)
        self._upkeep.stop()
        if self._retry is not None:
            self._retry.cancel()
        idle = [vm for vm in self.vms if vm.state is VMState.WARM]
        await asyncio.gather(self.shells.keep_only(None, 0), *(self.release(vm, error.message) for vm in idle))

    async def close(self, error: VMKernelError) -> None:
        """Destroy every VM; holders of leases are told."""
        self.closed = True
        await self.end(error)
        for vm in [vm for vm in self.vms if vm.state in (VMState.LEASED, VMState.CHECKPOINTING)]:
            self.vm_ended(vm, error.message)
        await self.tasks.finished()
        await asyncio.gather(
            self.shells.keep_only(None, 0), *(self.release(vm, error.message) for vm in list(self.vms))
        )
        self.golden.drop()

    def _begin_boot(self, source: Source) -> Coroutine[Any, Any, bool]:
        """Count the VM as booting from this moment on; what is returned makes it."""
        vm, shell = self.begin(source)
        return self._boot(vm, source, shell)

    def begin(self, source: Source) -> tuple[PooledVM, PreparedMachine | None]:
        """A VM that counts as booting from this moment on, and a shell for it if there is one. Then call make()."""
        shell = self.shells.take(source)
        name = shell.name if shell is not None else f"vm-{secrets.token_hex(4)}"
        vm = PooledVM(name=name, profile=self.profile.name, source=source)
        self.vms.add(vm)
        source.golden.hold()
        return vm, shell

    async def make(self, vm: PooledVM, source: Source, function: Callable[..., WarmMachine], *arguments: Any) -> float:
        """Have ``function`` make the VM, in the executor; it is warm then. Returns the seconds that took.

        Raises what the function raises; there is no VM then. One that hangs is killed.
        """
        started = time.perf_counter()
        making = asyncio.ensure_future(self.tasks.in_executor(function, source, vm.name, *arguments))
        try:
            while not (await asyncio.wait([making], timeout=BOOT_TIMEOUT_S))[0]:
                self.log.error("clone_hangs", vm=vm.name, after_s=BOOT_TIMEOUT_S)
                await self.tasks.in_executor(self.factory.abort, vm.name)
            warm = making.result()
        except BaseException:
            vm.go(VMState.DYING)
            vm.go(VMState.DEAD)
            self.vms.discard(vm)
            raise
        finally:
            source.golden.release()
        seconds = time.perf_counter() - started
        vm.machine, vm.stream, vm.warm_ms = warm.machine, warm.stream, round(1000 * seconds, 1)
        vm.go(VMState.WARM)
        watch.start(vm, self.vm_ended)
        return seconds

    async def _boot(self, vm: PooledVM, source: Source, shell: PreparedMachine | None) -> bool:
        try:
            seconds = await self.make(vm, source, self.factory.warm_machine, shell)
        except Exception as error:
            self.log.error("clone_failed", vm=vm.name, error=str(error), in_a_row=self.trouble.in_a_row + 1)
            self.failed(as_ours(error, "No VM can be made"), broken=False)
            return False
        assert vm.machine is not None
        self.clone_times.add(seconds)
        self.restore_times.add(vm.machine.timings["restore"] / 1000)
        self.log.info("vm_warm", vm=vm.name, ms=vm.warm_ms, prepared=shell is not None)
        self._works()
        self.offer(vm)
        self.refill()
        return True

    def offer(self, vm: PooledVM) -> None:
        """Give a warm VM to the first who waits, or keep it."""
        if self.ending is not None:
            self.release_soon(vm, self.ending.message)
        elif not self.queue.serve(vm):
            self.warm.append(vm)

    def _take_warm(self) -> PooledVM | None:
        while self.warm:
            vm = self.warm.popleft()
            if vm.machine is not None and vm.machine.alive and not vm.machine.stopped:
                return vm
            self.vm_ended(vm, "it was found dead or stopped")
        return None

    def _works(self) -> None:
        """A VM could be made."""
        if self.error is not None:
            self.log.info("profile_recovered")
        self.trouble.succeeded()
        self.error = None

    def failed(self, error: VMKernelError, broken: bool) -> None:
        """No VM or snapshot could be made: try again later, and call the profile broken if that is needed."""
        pause = self.trouble.failed(error)
        if broken or self.trouble.repeated:
            # perhaps it is the snapshot or the image that is at fault: the next try opens them anew
            self.golden.drop()
            self.error = error
            self.log.error("profile_broken", error=error.message, hint=error.hint, retry_s=pause)
            self.queue.fail(error)
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(pause + 0.01, self._try_again)

    def _try_again(self) -> None:
        self.start()
        self.refill()

    def _fill_shells(self) -> None:
        """Start QEMUs ahead when there is nothing more urgent."""
        source = self.source
        if source is None or self.ending is not None or self.error is not None or self.refusal:
            return
        if not self.count(VMState.BOOTING) and self.shells.missing(self.config.prepared):
            self.tasks.spawn(self._prepare_shells(source))

    async def _prepare_shells(self, source: Source) -> None:
        with suppress(GoldenError):
            source.golden.hold()
            try:
                await self.shells.fill(source, self.config.prepared)
            finally:
                source.golden.release()
