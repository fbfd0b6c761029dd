"""The VM of one sandbox: its lease, its stream, and its end. What is executed in it is in ``sandbox``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from guest_agent.frames import FrameError, Kind
from vm_kernel.errors import CheckpointError, GuestProtocolError, SandboxClosed, VMDied, VMKernelError
from vm_kernel.guest.asyncio_stream import VsockProtocol
from vm_kernel.guest.egress import Egress
from vm_kernel.guest.file_channel import FileChannel
from vm_kernel.guest.messages import WireError
from vm_kernel.pool.client import Lease, PoolConnection
from vm_kernel.sandbox import lease as leases
from vm_kernel.sandbox.files import open_channel

T = TypeVar("T")

#: seconds for the other half of the story when a VM ends: the pool's reason, the guest's last output
LAST_WORDS_S = 0.5
#: seconds that the guest's agent has to fall silent before its VM's state is saved
SILENCE_S = 10.0


class Ask(Protocol):
    """Asks the pool service something over the lease."""

    def __call__(self, question: Callable[[PoolConnection], T], /) -> Awaitable[T]: ...


class Tenancy:
    """At most one VM. ``on_message`` gets what the guest sends, ``on_end`` the cause when the VM has ended."""

    def __init__(self, on_message: Callable[[Kind, bytes], None], on_end: Callable[[VMKernelError], None]) -> None:
        self.lease: Lease | None = None
        self._stream: VsockProtocol | None = None
        self._files: FileChannel | None = None
        self._egress: Egress | None = None
        self._unwatch: Callable[[], None] = lambda: None
        self._silence: asyncio.Future[None] | None = None
        self._on_message = on_message
        self._on_end = on_end
        #: why there is no VM
        self.cause: VMKernelError = SandboxClosed("The sandbox has not been started.", "Use `async with Sandbox()`.")

    async def take(self, profile: str, name: str, on_waiting: Callable[[str], None] | None, fork: str | None) -> Lease:
        """Take a VM from the pool; one that goes on from another's state if there is a token. As lease.take()."""
        lease = await leases.take(profile, name, on_waiting, fork)
        self._connect(lease)
        self._unwatch = leases.watch(lease, self.end)
        if fork is not None:
            self.send_json(Kind.THAW, {})
        return lease

    def move(self, lease: Lease) -> None:
        """Go on in another VM that has come over the same lease and waits for THAW."""
        if self._stream is not None:
            self._stream.close()
        self._connect(lease)
        self.send_json(Kind.THAW, {})

    def _connect(self, lease: Lease) -> None:
        self.lease = lease
        self._stream = VsockProtocol(lease.stream, self._received, self._stream_ended)
        self._files = open_channel(self._stream, self.note)
        self._egress = self._open_egress(lease, self._stream)

    def _open_egress(self, lease: Lease, stream: VsockProtocol) -> Egress:
        """The way out of this VM. What the session may still transfer goes on from the VM before."""
        if self._egress is not None:
            self._egress.close()
        loop = asyncio.get_running_loop()

        def pump() -> None:
            if self._stream is stream:
                egress.pump(stream)

        def wake() -> None:
            with suppress(RuntimeError):  # a loop that has ended has taken its VM with it
                loop.call_soon_threadsafe(pump)

        budget = self._egress.budget if self._egress is not None else None
        egress = Egress(lease.vm.egress, lease.vm.profile, wake, partial(self.note, "egress"), budget)
        stream.on_written = pump
        if lease.vm.egress is not None:
            egress.begin()
            pump()
        return egress

    def send_parts(self, kind: Kind, parts: list[bytes]) -> None:
        """A Jupyter message to the guest. Only with a VM."""
        assert self._stream is not None
        self._stream.send_parts(kind, parts)

    def send_json(self, kind: Kind, fields: dict[str, Any]) -> None:
        """A message to the guest's agent, if there is a VM."""
        if self._stream is not None:
            self._stream.send_json(kind, fields)

    def note(self, event: str, fields: dict[str, Any]) -> bool:
        """Tell the pool service what was done with the VM. Never blocks; False: it could not be told."""
        return self.lease is not None and self.lease.connection.note(event, fields)

    @property
    def files(self) -> FileChannel:
        """For FilesystemShare. Raises why there is no VM."""
        if self._files is None:
            raise self.cause
        return self._files

    # ---- asking the pool

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[Ask]:
        """What it gives asks the pool service over the lease, one question at a time. Raises why there is no VM."""
        if self.lease is None:
            raise self.cause
        lease = self.lease
        self._unwatch()
        try:
            yield lambda question: leases.ask(lease, question)
        finally:
            if self.lease is not None:
                self._unwatch = leases.watch(self.lease, self.end)

    @asynccontextmanager
    async def silent(self) -> AsyncIterator[Ask]:
        """As asking(), and the guest's agent has fallen silent: its VM's state can be saved."""
        async with self.asking() as ask:
            self._silence = asyncio.get_running_loop().create_future()
            self.send_json(Kind.FREEZE, {})
            try:
                await self._fall_silent(self._silence)
                yield ask
            finally:
                self._silence = None
                self.send_json(Kind.THAW, {})

    async def _fall_silent(self, silence: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(SILENCE_S):
                await silence
        except TimeoutError:
            raise CheckpointError("The guest did not fall silent.", "Its state was not saved.") from None

    # ---- the guest, and the end

    def _received(self, kind: Kind, body: bytes) -> None:
        """What the guest sends is hostile input: what is malformed, or nobody's, is dropped or ends the VM."""
        try:
            if kind is Kind.FILES:
                self.files.feed(body)
            elif kind is Kind.PROXY:
                if self._egress is not None:
                    self._egress.feed(body)
            elif kind is not Kind.FROZEN:
                self._on_message(kind, body)
            elif self._silence is not None and not self._silence.done():
                self._silence.set_result(None)
        except WireError:
            return
        except FrameError as error:
            self.end(GuestProtocolError(f"The guest broke the protocol: {error}.", "restart() takes a new VM."))

    def _stream_ended(self, error: VMKernelError) -> None:
        """The pool may know why, and says so in a moment."""
        if isinstance(error, VMDied):
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._end_of, self._stream, error)
        else:
            self.end(error)

    def _end_of(self, stream: VsockProtocol | None, error: VMKernelError) -> None:
        if self._stream is stream:
            self.end(error)

    def end(self, cause: VMKernelError) -> None:
        """There is no VM any more. Once a VM: a later cause is not told."""
        if self.lease is None:
            return
        self.cause = cause
        self._unwatch()
        if self._stream is not None:
            self._stream.close()
        if self._files is not None:
            self._files.fail(cause)
        if self._silence is not None and not self._silence.done():
            self._silence.set_exception(cause)
        if self._egress is not None:
            self._egress.close()
        self._on_end(cause)
        self.lease.connection.close()
        self.lease = self._stream = self._files = self._egress = None
