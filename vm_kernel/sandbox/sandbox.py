"""``Sandbox``: one VM of the pool, in which code is executed. What becomes of its output is in ``result``."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any

from guest_agent.frames import JUPYTER_KINDS, Kind, decode_json, unpack_parts
from vm_kernel.errors import SandboxClosed, VMDied, VMKernelError
from vm_kernel.guest.ends import python_ended
from vm_kernel.guest.ledger import Ledger
from vm_kernel.guest.messages import MAX_COUNT, GuestMessage, parse_guest
from vm_kernel.pool.client import Lease
from vm_kernel.pool.protocol import VMFacts
from vm_kernel.sandbox.files import FilesystemShare
from vm_kernel.sandbox.result import Collector, ExecutionResult, Output, Status
from vm_kernel.sandbox.snapshots import SnapshotManager
from vm_kernel.sandbox.tenancy import Ask, Tenancy

#: bytes of output that one execution keeps unless told otherwise
MAX_OUTPUT_BYTES = 64 * 1024 * 1024
#: seconds that code has to end after it was interrupted; then its VM is destroyed
GRACE_S = 5.0
#: the same of an emulated VM, which may share its processor with many: more than 5 s were seen
EMULATED_GRACE_S = 15.0

_IDENTITY = b"sandbox"


class _Run:
    """One execution that is under way."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.reply: dict[str, Any] | None = None
        self.idle = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self) -> None:
        """It has ended when its reply and its 'idle' have both come: all output is there then."""
        if self.reply is not None and self.idle and not self.ended.done():
            self.ended.set_result(None)


class Sandbox:
    """A VM of one's own: ``async with Sandbox() as box``. Leaving the block destroys the VM.

    files: copies files to and from the VM, also while code runs.

    profile: of the pool's configuration. name: shown in the pool's status and log.
    on_waiting: called with words when there is no VM at once.
    max_output_bytes: output of one execution that is kept. fork: see ``fork()``, which makes such sandboxes.
    """

    def __init__(
        self,
        profile: str = "default",
        *,
        name: str = "",
        on_waiting: Callable[[str], None] | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        fork: str | None = None,
    ) -> None:
        self.profile = profile
        #: saved states of this sandbox
        self.snapshots = SnapshotManager(self)
        self._fork = fork
        self._name = name or f"sandbox-{os.getpid()}"
        self._on_waiting = on_waiting
        self._max_output_bytes = max_output_bytes
        self._lock = asyncio.Lock()
        self._runs: dict[str, _Run] = {}
        self._interrupts = 0
        #: of them, those that the guest has not confirmed
        self._unconfirmed = 0
        self._tenancy = Tenancy(self._received, self._ended)
        self._ledger = Ledger(self._tenancy.note)
        self.files = FilesystemShare(lambda: self._tenancy.files)

    async def __aenter__(self) -> Sandbox:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def vm(self) -> VMFacts | None:
        """Facts about the VM; None if there is none."""
        lease = self._tenancy.lease
        return lease.vm if lease is not None else None

    async def start(self) -> None:
        """Take a VM from the pool; nothing if there is one.

        Raises PoolFull, UnknownProfile, ImageError, HostError, PoolUnavailable, …
        """
        if self._tenancy.lease is not None:
            return
        fork, self._fork = self._fork, None
        lease = await self._tenancy.take(self.profile, self._name, self._on_waiting, fork)
        self._ledger.keep_code = lease.vm.audit_code

    async def close(self) -> None:
        """Give the VM back: the pool destroys it. An execution that is under way raises SandboxClosed."""
        self._tenancy.end(SandboxClosed("The sandbox has been closed.", "start() takes a new VM."))

    async def restart(self) -> None:
        """Take a new VM in the golden snapshot's state. Raises as start()."""
        await self.close()
        await self.start()

    async def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  it does more than cancel: see below
        on_output: Callable[[Output], None] | None = None,
    ) -> ExecutionResult:
        """Run code as a notebook's cell and wait for its end. Calls made meanwhile wait for their turn.

        timeout: seconds; then the code is interrupted, and if it does not end within GRACE_S (EMULATED_GRACE_S
            without KVM), its VM destroyed.
        on_output: called with each output as it comes.
        Cancelling interrupts the code. An exception of the code is in the result and not raised.
        Raises VMDied if the VM ends, SandboxClosed if there is none, ValueError for a timeout that is no time.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"a timeout of {timeout} s")
        async with self._lock:
            await self._stop_abandoned()
            if self._tenancy.lease is None:
                raise self._tenancy.cause
            collector = Collector(self._max_output_bytes, on_output)
            run, begin = _Run(collector), time.monotonic()
            content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
            msg_id = self._send("execute_request", content)
            self._runs[msg_id] = run
            self._ledger.sent(msg_id, code)
            status: Status | None = None
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.shield(run.ended)
            except TimeoutError:
                status = "timeout"
                self._ledger.timed_out(msg_id)
                await self._stop(run)
            except asyncio.CancelledError:
                self.interrupt()
                raise
            return _result(run, status, time.monotonic() - begin)

    def interrupt(self) -> None:
        """Interrupt what runs, as a notebook's stop button does. Nothing if nothing runs."""
        self._interrupts += 1
        self._unconfirmed += 1
        self._tenancy.send_json(Kind.INTERRUPT, {"seq": self._interrupts})

    # ---- saved states

    async def fork(self, count: int = 1) -> list[Sandbox]:
        """Sandboxes that go on from this very state, each with its own VM, random numbers and names. This one, too.

        To try several ways at once. They are started, and independent: close each, or use it in ``async with``.
        Waits for the execution that is under way. Raises as start(), and CheckpointError; then there are none.
        """
        token = await self.save_fork()
        try:
            children = [
                Sandbox(
                    self.profile,
                    name=f"{self._name}-fork-{number + 1}",
                    on_waiting=self._on_waiting,
                    max_output_bytes=self._max_output_bytes,
                    fork=token,
                )
                for number in range(count)
            ]
            try:
                await asyncio.gather(*(child.start() for child in children))
            except BaseException:
                for child in children:
                    await child.close()
                raise
        finally:
            await self.drop_fork(token)
        return children

    async def save_fork(self) -> str:
        """Save the present state for sandboxes made with ``fork=`` the token that this returns. For SyncSandbox."""
        async with self.standing_still() as ask:
            return await ask(lambda pool: pool.fork())

    async def drop_fork(self, token: str) -> None:
        """All that were to go on from save_fork() have done so. A VM that has ended has taken it along."""
        with suppress(VMKernelError):
            async with self.undisturbed() as ask:
                await ask(lambda pool: pool.delete_checkpoint(token))

    @asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[Ask]:
        """Nothing is executed or copied meanwhile; what it gives asks the pool over the lease. For SnapshotManager."""
        async with self._alone(), self._tenancy.asking() as ask:
            yield ask

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[Ask]:
        """As undisturbed(), and the guest's agent has fallen silent. For SnapshotManager."""
        async with self._alone(), self._tenancy.silent() as ask:
            yield ask

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with self._lock, self.files.paused():
            await self._stop_abandoned()
            yield

    def move(self, lease: Lease) -> None:
        """Go on in another VM that has come over the same lease and waits for THAW. For SnapshotManager."""
        self._tenancy.move(lease)

    # ---- stopping

    async def _stop(self, run: _Run) -> None:
        """Interrupt, and destroy the VM if that does not help. Then the run has ended, one way or the other."""
        self.interrupt()
        grace_s = GRACE_S if self.vm is not None and self.vm.accelerator == "kvm" else EMULATED_GRACE_S
        done, _ = await asyncio.wait([run.ended], timeout=grace_s)
        if not done:
            self._tenancy.end(
                VMDied(
                    f"The VM was destroyed: its code did not stop within {grace_s:.0f} s of an interrupt.",
                    "restart() takes a new VM.",
                )
            )

    async def _stop_abandoned(self) -> None:
        """An execution whose caller was cancelled may still run."""
        for run in list(self._runs.values()):
            await self._stop(run)

    # ---- the guest

    def _send(self, msg_type: str, content: dict[str, Any]) -> str:
        msg_id = uuid.uuid4().hex
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "session": self._name,
            "username": "vm-kernel",
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "version": "5.4",
        }
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        self._tenancy.send_parts(Kind.SHELL, [_IDENTITY, *parts])
        return msg_id

    def _received(self, kind: Kind, body: bytes) -> None:
        """What the guest sends is hostile input. Raises WireError, FrameError, which the tenancy deals with."""
        if kind in JUPYTER_KINDS:
            parts, size = unpack_parts(body), len(body)
            del body  # it may be large, and it is in the parts
            self._jupyter_message(kind, parse_guest(parts), size)
            return
        fields = decode_json(body)
        if kind is Kind.KERNEL_DIED:
            self._tenancy.end(python_ended(fields, self.vm.memory_mib if self.vm is not None else None))
        elif kind is Kind.INTERRUPTED and self._unconfirmed:
            self._unconfirmed -= 1
            # ipykernel acts on an interrupt of code that awaits something when its event loop wakes up
            self._send("comm_info_request", {})

    def _jupyter_message(self, kind: Kind, message: GuestMessage, size: int) -> None:
        run = self._runs.get(message.parent_id)
        if run is None:
            return
        if kind is Kind.SHELL and message.msg_type == "execute_reply":
            run.reply = message.content
            self._ledger.replied(message)
        elif kind is Kind.IOPUB and message.msg_type == "status":
            run.idle = run.idle or message.content.get("execution_state") == "idle"
        elif kind is Kind.IOPUB:
            run.collector.add(message.msg_type, message.content, size)
        if kind is Kind.IOPUB:
            self._ledger.published(message)
        run.settle()
        if run.ended.done():
            del self._runs[message.parent_id]

    def _ended(self, cause: VMKernelError) -> None:
        """There is no VM any more, in a moment: its end can still be noted."""
        self._ledger.vm_ended()
        self._unconfirmed = 0
        self.files.forget()
        for run in self._runs.values():
            if not run.ended.done():
                run.ended.set_exception(cause)
                run.ended.exception()  # nobody may be waiting for it
        self._runs.clear()


def _result(run: _Run, status: Status | None, duration_s: float) -> ExecutionResult:
    reply, collector = run.reply or {}, run.collector
    count = reply.get("execution_count")
    return ExecutionResult(
        status=status or ("ok" if reply.get("status") == "ok" else "error"),
        stdout=collector.text("stdout"),
        stderr=collector.text("stderr"),
        outputs=collector.outputs,
        error=collector.error,
        duration_s=duration_s,
        execution_count=count if type(count) is int and 0 <= count <= MAX_COUNT else 0,
        truncated=collector.truncated,
        killed=run.reply is None,
    )
