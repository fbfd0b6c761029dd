"""One lease, from the request to the destroyed VM. It lives exactly as long as its connection.

While it lives its holder may ask for more: checkpoints, and to go back to one, which gives it another VM.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from guest_agent.frames import Kind, encode_json
from vm_kernel.errors import CheckpointError, PoolRequestError, VMDied, VMKernelError
from vm_kernel.pool.checkpoints import Entry, SessionCheckpoints
from vm_kernel.pool.facts import facts_of
from vm_kernel.pool.lines import LineReader
from vm_kernel.pool.protocol import decode, encode, error_event
from vm_kernel.pool.restoring import fork as fork_vm
from vm_kernel.pool.restoring import restore
from vm_kernel.pool.state import LeaseHolder, PooledVM

if TYPE_CHECKING:
    from vm_kernel.pool.pool import ProfilePool
    from vm_kernel.pool.service import PoolService
    from vm_kernel.pool.session import Session


async def serve_lease(service: PoolService, connection: socket.socket, request: dict[str, Any], pid: int) -> None:
    """Find a VM, hand it over, and destroy it when the connection or the VM ends.

    Raises PoolFull, UnknownProfile, ImageError, HostError, … for the service to pass on.
    """
    started = time.perf_counter()
    profile, kernel_id = request.get("profile", "default"), request.get("kernel_id", "")
    if not isinstance(profile, str) or not isinstance(kernel_id, str):
        raise PoolRequestError("profile and kernel_id must be strings.", "See vm_kernel/pool/protocol.py.")
    fork = _fork(service, request)
    pool = service.pool(profile if fork is None or fork.source is None else fork.source.profile)
    holder = LeaseHolder(pid, kernel_id[:200], datetime.now(UTC))
    vm = pool.take(holder) if fork is None else None
    if vm is None:
        vm = await _wait_for_vm(pool, holder, connection, fork)
    if vm is not None:
        await Lease(service, pool, connection, holder, vm).serve(started)


def _fork(service: PoolService, request: dict[str, Any]) -> Entry | None:
    """The checkpoint that the request wants its VM to begin from; None: from the golden snapshot."""
    token = request.get("fork")
    if token is None:
        return None
    entry = service.checkpoints.forks.get(token) if isinstance(token, str) else None
    if entry is None or entry.source is None:
        raise CheckpointError("The sandbox that was to be forked has ended meanwhile.", "Fork one that is running.")
    return entry


class Lease:
    """A lease that has its VM."""

    def __init__(
        self, service: PoolService, pool: ProfilePool, connection: socket.socket, holder: LeaseHolder, vm: PooledVM
    ) -> None:
        self.holder = holder
        self.vm = vm
        self._service = service
        self._pool = pool
        self._connection = connection
        self._checkpoints = SessionCheckpoints(service.checkpoints, secrets.token_hex(8))
        self._session: Session | None = None
        self._log = structlog.get_logger().bind(profile=vm.profile, client_pid=holder.pid)

    async def serve(self, started: float) -> None:
        """Hand the VM over, answer requests until the connection or the VM ends, and destroy the VM.

        ``started``: when the request came, as time.perf_counter().
        """
        cause = "its client left before it had the VM"
        try:
            self._hand_over()
            seconds = time.perf_counter() - started
            self._service.acquire_times.add(seconds)
            self._service.leases += 1
            self._session = self._service.observer.lease_begins(self._connection, self.vm, seconds)
            self._log = self._log.bind(lease=self._session.id)
            self._log.info(
                "lease_begins", vm=self.vm.name, ms=round(1000 * seconds, 2), kernel_id=self.holder.kernel_id
            )
            cause = await self._serve_requests()
        except OSError:
            self._log.info("client_gone")
        finally:
            self._log.info("lease_ends", vm=self.vm.name, cause=cause)
            if self._session is not None:
                self._service.observer.lease_ends(self._session, cause)
            # the connection may end because the service stops: destroying must not be cancelled with it
            await asyncio.shield(asyncio.ensure_future(self._end(cause)))

    async def _serve_requests(self) -> str:
        """Returns why the lease has ended."""
        reader = LineReader(self._connection, _request_or_none)
        reading = asyncio.ensure_future(reader.next())
        try:
            while True:
                await _first(reading, self.vm.ended)
                if self.vm.ended.done():
                    return await self._tell_end(reader, reading)
                request = reading.result()
                if request is None:
                    return "its lease ended"
                await self._answer(request)
                reading = asyncio.ensure_future(reader.next())
        except PoolRequestError as error:  # a line without an end
            await self._send(error_event(error))
            return "its holder broke the protocol"
        finally:
            reading.cancel()

    async def _tell_end(self, reader: LineReader, reading: asyncio.Future[Any]) -> str:
        cause = self.vm.ended.result()
        self._tell({"event": "vm_gone", "reason": cause})
        # the client closes when it has read that; one that does not is not waited for. Its last notes may be on the way
        with suppress(TimeoutError, PoolRequestError):
            async with asyncio.timeout(5.0):
                while (request := await reading) is not None:
                    self._note(request)
                    reading = asyncio.ensure_future(reader.next())
        return cause

    async def _answer(self, request: dict[str, Any]) -> None:
        """Do what the holder asks. An error that says why it cannot be done does not end the lease."""
        if self._note(request):
            return
        try:
            await self._do(request)
        except VMKernelError as error:
            self._log.info("lease_request_refused", op=str(request.get("op"))[:40], error=error.message)
            if self._session is not None:
                self._service.observer.refused(self._session.peer, request, error, self._session)
            await self._send(error_event(error))

    def _note(self, request: dict[str, Any]) -> bool:
        """Pass a note on; False if the request is none."""
        if request.get("op") != "note":
            return False
        if self._session is not None:
            self._service.observer.note(self._session, request)
        return True

    async def _do(self, request: dict[str, Any]) -> None:
        name = request.get("name")
        match request.get("op"):
            case "checkpoint":
                facts = await self._checkpoints.save(self.vm, str(name), keep=request.get("keep") is True)
                self._log.info("checkpoint_saved", vm=self.vm.name, **facts)
                self._observe("checkpoint", **facts)
                await self._send({"event": "checkpoint", "checkpoint": facts})
            case "fork":
                token = await self._checkpoints.fork(self.vm)
                self._log.info("fork_saved", vm=self.vm.name)
                self._observe("fork", token=token[:8])
                await self._send({"event": "fork", "token": token})
            case "checkpoints":
                await self._send(await self._list())
            case "delete_checkpoint":
                await self._checkpoints.delete(str(name))
                self._log.info("checkpoint_deleted", name=str(name)[:64])
                self._observe("delete_checkpoint", name=str(name)[:64])
                await self._send({"event": "deleted"})
            case "rollback":
                await self._roll_back(str(name))
            case other:
                raise PoolRequestError(
                    f"The pool service was asked for {str(other)[:100]!r} within a lease, which it does not know.",
                    "Restart the service after an upgrade: `vm-kernel pool stop`.",
                )

    async def _list(self) -> dict[str, Any]:
        store = self._service.checkpoints
        used = await store.run(store.used_bytes)
        return {
            "event": "checkpoints",
            "checkpoints": self._checkpoints.list(self.vm.source),
            "used_mib": round(used / (1 << 20), 1),
            "limit_mib": store.limit_mib,
        }

    async def _roll_back(self, name: str) -> None:
        """Give the holder a VM that goes on from a checkpoint. The present one goes when the other is there."""
        checkpoint, source = await self._checkpoints.find(name, self._pool.source)
        old = self.vm
        new = await restore(self._pool, source, checkpoint, self.holder, same_session=True)
        if old.ended.done():
            await self._pool.release(new, "the session that wanted it has ended")
            raise VMDied(f"The virtual machine has ended: {old.ended.result()}", "Its state is lost.")
        self.vm = new
        # not waited for: the session goes on at once
        self._pool.release_soon(old, f"its session went back to checkpoint {name}")
        self._log.info("rolled_back", vm=new.name, old_vm=old.name, name=name, ms=new.warm_ms)
        if self._session is not None:
            self._session.vm = new
        self._observe("rollback", name=name, old_vm=old.name, ms=new.warm_ms)
        self._hand_over()

    def _observe(self, action: str, **facts: Any) -> None:
        if self._session is not None:
            self._service.observer.action(self._session, action, **facts)

    def _hand_over(self) -> None:
        """Send the facts and the descriptor; our own copy of it is closed. Raises OSError."""
        vm = self.vm
        assert vm.stream is not None
        facts = encode({"event": "lease", "vm": facts_of(vm, self._pool, self._service.factory)._asdict()})
        # a VM may have been warm for hours, and the host asleep meanwhile
        vm.stream.send(encode_json(Kind.CLOCK, {"time_ns": time.time_ns()}))
        socket.send_fds(self._connection, [facts], [vm.stream.fileno()])
        vm.stream.close()
        vm.stream = None
        vm.tell = self._tell

    def _tell(self, event: dict[str, Any]) -> None:
        """For events that the holder has not asked for."""
        with suppress(OSError):
            self._connection.send(encode(event))

    async def _send(self, event: dict[str, Any]) -> None:
        await asyncio.get_running_loop().sock_sendall(self._connection, encode(event))

    async def _end(self, cause: str) -> None:
        await self._pool.release(self.vm, cause)
        await self._checkpoints.close()


async def _wait_for_vm(
    pool: ProfilePool, holder: LeaseHolder, connection: socket.socket, fork: Entry | None
) -> PooledVM | None:
    """A VM from the pool; None if the client leaves while it waits."""
    closed = asyncio.ensure_future(_closed(connection))
    told = ""

    def tell(message: str) -> None:
        nonlocal told
        if message != told:
            told = message
            with suppress(OSError):
                connection.send(encode({"event": "waiting", "message": message}))

    if fork is None or fork.source is None:
        acquiring = asyncio.ensure_future(pool.acquire(holder, tell))
    else:
        acquiring = asyncio.ensure_future(fork_vm(pool, fork.source, fork.checkpoint, holder, tell))
    try:
        await _first(acquiring, closed)
        if acquiring.done():
            return acquiring.result()
        return None
    finally:
        if not acquiring.done():
            acquiring.cancel()
            with suppress(asyncio.CancelledError):
                vm = await acquiring
                await pool.release(vm, "its client left while it waited")
        closed.cancel()


def _request_or_none(line: bytes) -> dict[str, Any]:
    """A line that is no request gets an answer like one that is not known."""
    try:
        return decode(line)
    except PoolRequestError:
        return {}


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _closed(connection: socket.socket) -> None:
    """Returns when the client closes its end before it has a VM. What it sends meanwhile is dropped."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while await loop.sock_recv(connection, 4096):
            pass
