"""``Sandbox``: one VM of the pool, in which code is executed. What becomes of its output is in ``result``."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Protocol, TypeVar

from guest_agent.frames import JUPYTER_KINDS, FrameError, Kind, decode_json, unpack_parts
from vm_kernel.errors import CheckpointError, GuestProtocolError, SandboxClosed, VMDied, VMKernelError
from vm_kernel.guest.asyncio_stream import VsockProtocol
from vm_kernel.guest.ends import python_ended
from vm_kernel.guest.file_channel import FileChannel
from vm_kernel.guest.ledger import Ledger
from vm_kernel.guest.messages import GuestMessage, WireError, parse_guest
from vm_kernel.pool.client import Lease, PoolConnection
from vm_kernel.pool.protocol import VMFacts
from vm_kernel.sandbox import lease as leases
from vm_kernel.sandbox.files import FilesystemShare, open_channel
from vm_kernel.sandbox.result import Collector, ExecutionResult, Output, Status
from vm_kernel.sandbox.snapshots import SnapshotManager

T = TypeVar("T")

#: bytes of output that one execution keeps unless told otherwise
MAX_OUTPUT_BYTES = 64 * 1024 * 1024
#: seconds that code has to end after it was interrupted; then its VM is destroyed
GRACE_S = 5.0
#: seconds for the other half of the story when a VM ends: the pool's reason, the guest's last output
LAST_WORDS_S = 0.5

#: seconds that the guest's agent has to fall silent before its VM's state is saved
SILENCE_S = 10.0

_IDENTITY = b"sandbox"


class Ask(Protocol):
    """Asks the pool service something over the lease."""

    def __call__(self, question: Callable[[PoolConnection], T], /) -> Awaitable[T]: ...


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
        self._silence: asyncio.Future[None] | None = None
        self._name = name or f"sandbox-{os.getpid()}"
        self._on_waiting = on_waiting
        self._max_output_bytes = max_output_bytes
        self._lock = asyncio.Lock()
        self._lease: Lease | None = None
        self._stream: VsockProtocol | None = None
        self._unwatch: Callable[[], None] = lambda: None
        self._runs: dict[str, _Run] = {}
        self._interrupts = 0
        self._ledger = Ledger(self._note)
        self._file_channel: FileChannel | None = None
        self.files = FilesystemShare(self._files_of_vm)
        #: why there is no VM
        self._cause: VMKernelError = SandboxClosed("The sandbox has not been started.", "Use `async with Sandbox()`.")

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
        return self._lease.vm if self._lease is not None else None

    async def start(self) -> None:
        """Take a VM from the pool; nothing if there is one.

        Raises PoolFull, UnknownProfile, ImageError, HostError, PoolUnavailable, …
        """
        if self._lease is not None:
            return
        fork, self._fork = self._fork, None
        self._occupy(await leases.take(self.profile, self._name, self._on_waiting, fork))
        if fork is not None and self._stream is not None:
            self._stream.send_json(Kind.THAW, {})

    async def close(self) -> None:
        """Give the VM back: the pool destroys it. An execution that is under way raises SandboxClosed."""
        self._end(SandboxClosed("The sandbox has been closed.", "start() takes a new VM."))

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

        timeout: seconds; then the code is interrupted, and if it does not end within GRACE_S, its VM destroyed.
        on_output: called with each output as it comes.
        Cancelling interrupts the code. An exception of the code is in the result and not raised.
        Raises VMDied if the VM ends, SandboxClosed if there is none, ValueError for a timeout that is no time.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"a timeout of {timeout} s")
        async with self._lock:
            await self._stop_abandoned()
            if self._stream is None:
                raise self._cause
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
        if self._stream is not None:
            self._interrupts += 1
            self._stream.send_json(Kind.INTERRUPT, {"seq": self._interrupts})

    def _note(self, event: str, fields: dict[str, Any]) -> bool:
        return self._lease is not None and self._lease.connection.note(event, fields)

    # ---- saved states

    async def fork(self, count: int = 1) -> list[Sandbox]:
        """Sandboxes that go on from this very state, each with its own VM, random numbers and names. This one, too.

        To try several ways at once. They are started, and independent: close each, or use it in ``async with``.
        Waits for the execution that is under way. Raises as start(), and CheckpointError; then there are none.
        """
        async with self.forking() as token:
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
        return children

    @asynccontextmanager
    async def forking(self) -> AsyncIterator[str]:
        """Save the present state for sandboxes that are made with ``fork=`` the token that this gives, within it."""
        async with self.standing_still() as ask:
            token = await ask(lambda pool: pool.fork())
        try:
            yield token
        finally:
            async with self.undisturbed() as ask:
                await ask(lambda pool: pool.delete_checkpoint(token))

    @asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[Ask]:
        """Nothing is executed or copied meanwhile; what it gives asks the pool over the lease. For SnapshotManager."""
        async with self._lock, self.files.paused():
            await self._stop_abandoned()
            if self._lease is None:
                raise self._cause
            lease = self._lease
            self._unwatch()
            try:
                yield lambda question: leases.ask(lease, question)
            finally:
                if self._lease is not None:
                    self._unwatch = leases.watch(self._lease, self._end)

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[Ask]:
        """As undisturbed(), and the guest's agent has fallen silent. For SnapshotManager."""
        async with self.undisturbed() as ask:
            assert self._stream is not None
            self._silence = asyncio.get_running_loop().create_future()
            self._stream.send_json(Kind.FREEZE, {})
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self._silence
                yield ask
            except TimeoutError:
                raise CheckpointError("The guest did not fall silent.", "Its state was not saved.") from None
            finally:
                self._silence = None
                if self._stream is not None:
                    self._stream.send_json(Kind.THAW, {})

    def move(self, lease: Lease) -> None:
        """Go on in another VM that has come over the same lease and waits for THAW. For SnapshotManager."""
        if self._stream is not None:
            self._stream.close()
        self._connect(lease)
        if self._stream is not None:
            self._stream.send_json(Kind.THAW, {})

    def _occupy(self, lease: Lease) -> None:
        self._ledger.keep_code = lease.vm.audit_code
        self._connect(lease)
        self._unwatch = leases.watch(lease, self._end)

    def _connect(self, lease: Lease) -> None:
        self._lease = lease
        self._stream = VsockProtocol(lease.stream, self._received, self._stream_ended)
        self._file_channel = open_channel(self._stream, self._note)

    # ---- stopping

    async def _stop(self, run: _Run) -> None:
        """Interrupt, and destroy the VM if that does not help. Then the run has ended, one way or the other."""
        self.interrupt()
        done, _ = await asyncio.wait([run.ended], timeout=GRACE_S)
        if not done:
            self._end(
                VMDied(
                    f"The VM was destroyed: its code did not stop within {GRACE_S:.0f} s of an interrupt.",
                    "restart() takes a new VM.",
                )
            )

    async def _stop_abandoned(self) -> None:
        """An execution whose caller was cancelled may still run."""
        for run in list(self._runs.values()):
            await self._stop(run)

    # ---- files

    def _files_of_vm(self) -> FileChannel:
        if self._file_channel is None:
            raise self._cause
        return self._file_channel

    # ---- the guest

    def _send(self, msg_type: str, content: dict[str, Any]) -> str:
        assert self._stream is not None
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
        self._stream.send_parts(Kind.SHELL, [_IDENTITY, *parts])
        return msg_id

    def _received(self, kind: Kind, body: bytes) -> None:
        """What the guest sends is hostile input: what is malformed, or nobody's, is dropped or ends the VM."""
        try:
            if kind in JUPYTER_KINDS:
                self._jupyter_message(kind, parse_guest(unpack_parts(body)), len(body))
            elif kind is Kind.FILES and self._file_channel is not None:
                self._file_channel.feed(body)
            elif kind is Kind.KERNEL_DIED:
                self._end(python_ended(decode_json(body), self.vm.memory_mib if self.vm is not None else None))
            elif kind is Kind.FROZEN and self._silence is not None and not self._silence.done():
                self._silence.set_result(None)
            elif kind is Kind.INTERRUPTED:
                # ipykernel acts on an interrupt of code that awaits something when its event loop wakes up
                self._send("comm_info_request", {})
        except WireError:
            return
        except FrameError as error:
            self._end(GuestProtocolError(f"The guest broke the protocol: {error}.", "restart() takes a new VM."))

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

    def _stream_ended(self, error: VMKernelError) -> None:
        """The pool may know why, and says so in a moment."""
        if isinstance(error, VMDied):
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._end_of, self._stream, error)
        else:
            self._end(error)

    def _end_of(self, stream: VsockProtocol | None, error: VMKernelError) -> None:
        if self._stream is stream:
            self._end(error)

    def _end(self, cause: VMKernelError) -> None:
        """There is no VM any more. Once a VM: a later cause is not told."""
        if self._lease is None:
            return
        self._cause = cause
        self._unwatch()
        if self._stream is not None:
            self._stream.close()
        self._ledger.vm_ended()
        if self._file_channel is not None:
            self._file_channel.fail(cause)
        self._lease.connection.close()
        self._lease = self._stream = self._file_channel = None
        self.files.forget()
        if self._silence is not None and not self._silence.done():
            self._silence.set_exception(cause)
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
        execution_count=count if isinstance(count, int) else 0,
        truncated=collector.truncated,
        killed=run.reply is None,
    )
