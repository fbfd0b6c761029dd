"""The warm VMs of one profile, and who is waiting for one. Runs on the service's event loop, in one thread.

Whatever blocks (libvirt, the guest handshake) is done by ``VMFactory`` in the executor that the service gives us.
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
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from vm_kernel.config import Profile
from vm_kernel.errors import GoldenError, PoolFull, PoolUnavailable, VMKernelError
from vm_kernel.pool import watch
from vm_kernel.pool.factory import Source, VMFactory, WarmMachine
from vm_kernel.pool.metrics import Durations
from vm_kernel.pool.state import LeaseHolder, PooledVM, VMState
from vm_kernel.vm.checkpoints import Checkpoint

T = TypeVar("T")

#: clones in a row that may fail before those who wait are told so
MAX_FAILURES = 3
#: the longest pause between two tries, in seconds
MAX_BACKOFF_S = 30.0


@dataclass(eq=False)
class Waiter:
    """One lease request that has no VM yet."""

    ready: asyncio.Future[PooledVM]
    tell: Callable[[str], None]


class ProfilePool:
    """Keeps ``min_warm`` VMs of one profile ready and never has more than ``max_vms``."""

    def __init__(self, profile: Profile, factory: VMFactory, executor: Executor, acquire_timeout_s: float) -> None:
        self.profile = profile
        self.source: Source | None = None
        self.error: VMKernelError | None = None
        self.detail = "not used yet"
        self.vms: set[PooledVM] = set()
        self.clone_times = Durations()
        self.restore_times = Durations()
        self.failures = 0
        self._factory = factory
        self._executor = executor
        self._acquire_timeout_s = acquire_timeout_s
        self._warm: deque[PooledVM] = deque()
        self._waiters: deque[Waiter] = deque()
        self._dropped: list[Source] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._preparing: asyncio.Task[None] | None = None
        self._failures_in_a_row = 0
        self._retry_at = 0.0
        self._closing = False
        self._log = structlog.get_logger().bind(profile=profile.name)

    @property
    def waiting(self) -> int:
        """Lease requests that have no VM yet."""
        return len(self._waiters)

    def count(self, state: VMState) -> int:
        """VMs in that state."""
        return sum(vm.state is state for vm in self.vms)

    @property
    def state(self) -> str:
        """``ok``, ``building`` (no golden snapshot yet) or ``broken`` (the last tries failed)."""
        if self.error is not None:
            return "broken"
        return "ok" if self.source is not None else "building"

    def start(self) -> None:
        """Load or build the golden snapshot and fill the pool, in the background."""
        if self._preparing is None and self.source is None and not self._closing:
            self.error = None
            self._preparing = self._spawn(self._prepare())

    async def acquire(self, holder: LeaseHolder, tell: Callable[[str], None]) -> PooledVM:
        """Hand out a warm VM; wait for one if there is none. ``tell`` gets the reason for the wait, in words.

        Raises PoolFull after ``acquire_timeout_s`` of a full pool, and what the factory raised if VMs cannot be made.
        """
        self.start()
        vm = self._take_warm()
        if vm is None:
            vm = await self._wait(tell)
        watch.stop_stream(vm)
        vm.go(VMState.LEASED)
        vm.holder = holder
        self.refill()
        return vm

    async def release(self, vm: PooledVM, cause: str) -> None:
        """Destroy a VM, whatever its state. Safe to call twice."""
        if vm.state in (VMState.DYING, VMState.DEAD):
            return
        vm.go(VMState.DYING)
        watch.stop(vm)
        with suppress(ValueError):
            self._warm.remove(vm)
        if vm.stream is not None:
            vm.stream.close()
        if vm.machine is not None:
            try:
                await self._in_executor(vm.machine.destroy)
            except VMKernelError as error:
                self._log.error("destroy_failed", vm=vm.name, error=error.message)
        vm.go(VMState.DEAD)
        self.vms.discard(vm)
        self._log.info("vm_destroyed", vm=vm.name, cause=cause, age_s=round(vm.age_s, 1))
        self.refill()

    def release_soon(self, vm: PooledVM, cause: str) -> None:
        """release(), without waiting for it."""
        self._spawn(self.release(vm, cause))

    async def restore(
        self, source: Source, checkpoint: Checkpoint, holder: LeaseHolder, *, same_session: bool
    ) -> PooledVM:
        """A leased VM that goes on from a checkpoint, whose agent waits for THAW. Called for a rollback.

        It may be one more than ``max_vms``, for a moment: the VM that it replaces goes at once. Raises VMError.
        """
        ready: asyncio.Future[PooledVM] = asyncio.get_running_loop().create_future()
        self._spawn(self._restore(source, checkpoint, same_session, ready))
        try:
            vm = await ready
        except BaseException:
            if ready.done() and not ready.cancelled() and ready.exception() is None:
                self.release_soon(ready.result(), "its client left before it was served")
            raise
        watch.stop_stream(vm)
        vm.go(VMState.LEASED)
        vm.holder = holder
        return vm

    async def fork(
        self, source: Source, checkpoint: Checkpoint, holder: LeaseHolder, tell: Callable[[str], None]
    ) -> PooledVM:
        """A VM of its own that begins from another session's checkpoint. Warm VMs make room for it.

        Raises PoolFull after ``acquire_timeout_s`` of a full pool, VMError.
        """
        limit = asyncio.get_running_loop().time() + self._acquire_timeout_s
        while len(self.vms) >= self.profile.max_vms:
            if self._warm:
                await self.release(self._warm.popleft(), "it makes room for a fork")
                continue
            tell(self._why_waiting())
            if asyncio.get_running_loop().time() > limit:
                raise self._full()
            await asyncio.sleep(0.1)
        return await self.restore(source, checkpoint, holder, same_session=False)

    async def _restore(
        self, source: Source, checkpoint: Checkpoint, same_session: bool, ready: asyncio.Future[PooledVM]
    ) -> None:
        vm = PooledVM(name=f"vm-{secrets.token_hex(4)}", profile=self.profile.name, source=source)
        self.vms.add(vm)
        try:
            source.golden.hold()
            try:
                make = self._factory.restored_machine
                warm: WarmMachine = await self._in_executor(make, source, vm.name, checkpoint, same_session)
            finally:
                source.golden.release()
        except Exception as error:
            vm.go(VMState.DYING)
            vm.go(VMState.DEAD)
            self.vms.discard(vm)
            if not ready.cancelled():
                ready.set_exception(error)
            return
        vm.machine, vm.stream, vm.warm_ms = warm.machine, warm.stream, round(1000 * warm.warm_s, 1)
        self.restore_times.add(warm.warm_s)
        vm.go(VMState.WARM)
        watch.start(vm, self.vm_ended)
        if ready.cancelled() or self._closing:
            await self.release(vm, "nobody waits for it any more")
        if not ready.done():
            if self._closing:
                ready.set_exception(PoolUnavailable("The pool service is stopping.", "Run the cell again."))
            else:
                ready.set_result(vm)

    def refill(self) -> None:
        """Start as many clones as are missing and allowed."""
        if self._closing or self.source is None:
            return
        now = time.monotonic()
        if now < self._retry_at:
            return
        booting = self.count(VMState.BOOTING)
        wanted = max(self.profile.min_warm, len(self._waiters)) - len(self._warm) - booting
        room = self.profile.max_vms - len(self.vms)
        # more clones at a time than cores only make each of them later
        for _ in range(min(wanted, room, max(1, os.cpu_count() or 1) - booting)):
            self._spawn(self._boot())
        self._tell_waiters()

    async def close(self) -> None:
        """Destroy every VM. No lease is served any more."""
        self._closing = True
        self._fail_waiters(PoolUnavailable("The pool service is stopping.", "Run the cell again."))
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        await asyncio.gather(*(self.release(vm, "the service stops") for vm in list(self.vms)))
        self._drop_source()

    async def _prepare(self) -> None:
        loop = asyncio.get_running_loop()

        def progress(stage: str, fraction: float) -> None:
            if self._closing:
                # called several times a second while the template boots: the one way to stop that thread
                raise GoldenError("The pool service is stopping.")
            loop.call_soon_threadsafe(self._say, f"{stage}: {fraction:.0%}" if fraction > 0 else stage)

        self._say("opening the golden snapshot")
        started = time.perf_counter()
        try:
            self.source = await self._in_executor(self._factory.source, self.profile, progress)
        except VMKernelError as error:
            self._break(error)
            return
        except Exception as error:
            self._log.exception("golden_failed")
            self._break(VMKernelError(f"The golden snapshot failed: {type(error).__name__}: {error}"))
            return
        finally:
            self._preparing = None
        self.detail = ""
        self._log.info("golden_ready", key=self.source.golden.key, seconds=round(time.perf_counter() - started, 2))
        self.refill()

    async def _boot(self) -> None:
        assert self.source is not None
        vm = PooledVM(name=f"vm-{secrets.token_hex(4)}", profile=self.profile.name)
        self.vms.add(vm)
        vm.source = self.source
        try:
            warm: WarmMachine = await self._in_executor(self._factory.warm_machine, self.source, vm.name)
        except Exception as error:
            vm.go(VMState.DYING)
            vm.go(VMState.DEAD)
            self.vms.discard(vm)
            self._clone_failed(vm, error)
            self._close_dropped()
            return
        vm.machine, vm.stream, vm.warm_ms = warm.machine, warm.stream, round(1000 * warm.warm_s, 1)
        self.clone_times.add(warm.warm_s)
        self.restore_times.add(warm.machine.timings["restore"] / 1000)
        self._failures_in_a_row, self.error, self.detail = 0, None, ""
        vm.go(VMState.WARM)
        watch.start(vm, self.vm_ended)
        self._close_dropped()
        self._log.info("vm_warm", vm=vm.name, ms=vm.warm_ms)
        if self._closing:
            return
        self._hand_over(vm)
        self.refill()

    def _hand_over(self, vm: PooledVM) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.ready.done():
                waiter.ready.set_result(vm)
                return
        self._warm.append(vm)

    def _take_warm(self) -> PooledVM | None:
        while self._warm:
            vm = self._warm.popleft()
            if vm.machine is not None and vm.machine.alive:
                return vm
            self.vm_ended(vm, "it was found dead")
        return None

    def vm_ended(self, vm: PooledVM, cause: str) -> None:
        """Clear a VM that ended or misbehaved by itself, and tell its holder."""
        if not vm.ended.done():
            vm.ended.set_result(cause)
        self._log.warning("vm_ended", vm=vm.name, state=vm.state.value, cause=cause)
        with suppress(ValueError):
            self._warm.remove(vm)
        self._spawn(self.release(vm, cause))

    async def _wait(self, tell: Callable[[str], None]) -> PooledVM:
        waiter = Waiter(asyncio.get_running_loop().create_future(), tell)
        self._waiters.append(waiter)
        tell(self._why_waiting())
        self.refill()
        try:
            async with asyncio.timeout(None) as limit:
                while not waiter.ready.done():
                    # the clock runs only while the pool is full: building a golden snapshot may take its time
                    limit.reschedule(self._deadline(limit.when()))
                    await asyncio.wait([waiter.ready], timeout=0.5)
                    self.refill()
                return waiter.ready.result()
        except TimeoutError:
            raise self._full() from None
        except BaseException:
            if waiter.ready.done() and not waiter.ready.cancelled() and waiter.ready.exception() is None:
                self._spawn(self.release(waiter.ready.result(), "its client left before it was served"))
            raise
        finally:
            with suppress(ValueError):
                self._waiters.remove(waiter)

    def _deadline(self, present: float | None) -> float | None:
        if self.source is None or len(self.vms) < self.profile.max_vms or self.count(VMState.BOOTING):
            return None
        return present or asyncio.get_running_loop().time() + self._acquire_timeout_s

    def _full(self) -> PoolFull:
        return PoolFull(
            f"All {self.profile.max_vms} VMs of profile {self.profile.name!r} are in use "
            f"and none became free within {self._acquire_timeout_s:g} s.",
            "Shut down a notebook that you do not need (`vm-kernel pool status` shows who has a VM), "
            "or raise c.PoolConfig.max_vms in vm_kernel_config.py; then run the cell again.",
        )

    def _why_waiting(self) -> str:
        if self.source is None:
            return self.detail
        if len(self.vms) >= self.profile.max_vms and not self.count(VMState.BOOTING):
            return f"all {self.profile.max_vms} VMs are in use; {len(self._waiters)} waiting for one"
        return "forking a VM from the golden snapshot"

    def _say(self, detail: str) -> None:
        self.detail = detail
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        for waiter in self._waiters:
            waiter.tell(self._why_waiting())

    def _clone_failed(self, vm: PooledVM, error: Exception) -> None:
        self.failures += 1
        self._failures_in_a_row += 1
        pause = min(MAX_BACKOFF_S, 0.25 * 2**self._failures_in_a_row)
        self._retry_at = time.monotonic() + pause
        message = error.message if isinstance(error, VMKernelError) else f"{type(error).__name__}: {error}"
        self._log.error("clone_failed", vm=vm.name, error=message, in_a_row=self._failures_in_a_row, pause_s=pause)
        if self._failures_in_a_row >= MAX_FAILURES:
            # perhaps it is the snapshot or the image that is at fault: the next request opens them anew
            self._drop_source()
            self._break(error if isinstance(error, VMKernelError) else VMKernelError(f"No VM can be made: {message}"))
        asyncio.get_running_loop().call_later(pause + 0.01, self.refill)

    def _drop_source(self) -> None:
        """Give up the golden snapshot. VMs that were forked from it have their own mapping and live on."""
        if self.source is not None:
            self._dropped.append(self.source)
            self.source = None
        self._close_dropped()

    def _close_dropped(self) -> None:
        """Close given-up snapshots, but not under a clone that is just being made: it would map another file."""
        if not self.count(VMState.BOOTING):
            while self._dropped:
                self._dropped.pop().golden.close()

    def _break(self, error: VMKernelError) -> None:
        self.error, self.detail = error, error.message
        self._log.error("profile_broken", error=error.message, hint=error.hint)
        self._fail_waiters(error)

    def _fail_waiters(self, error: VMKernelError) -> None:
        while self._waiters:
            ready = self._waiters.popleft().ready
            if not ready.done():
                ready.set_exception(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _in_executor(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
