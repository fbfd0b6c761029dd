"""One lease, from the request to the destroyed VM. It lives exactly as long as its connection."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from guest_agent.frames import Kind, encode_json
from vm_kernel.errors import PoolRequestError
from vm_kernel.pool.protocol import MAX_REQUEST, VMFacts, decode, encode
from vm_kernel.pool.state import LeaseHolder, PooledVM

if TYPE_CHECKING:
    from vm_kernel.pool.pool import ProfilePool
    from vm_kernel.pool.service import PoolService


async def serve_lease(service: PoolService, connection: socket.socket, request: dict[str, Any], pid: int) -> None:
    """Find a VM, hand it over, and destroy it when the connection or the VM ends.

    Raises PoolFull, UnknownProfile, ImageError, HostError, … for the service to pass on.
    """
    started = time.perf_counter()
    profile, kernel_id = request.get("profile", "default"), request.get("kernel_id", "")
    if not isinstance(profile, str) or not isinstance(kernel_id, str):
        raise PoolRequestError("profile and kernel_id must be strings.", "See vm_kernel/pool/protocol.py.")
    pool = service.pool(profile)
    session = None

    def heard(request: dict[str, Any]) -> None:
        if session is not None and request.get("op") == "note":
            service.observer.note(session, request)

    closed = asyncio.ensure_future(_closed(connection, heard))
    holder = LeaseHolder(pid, kernel_id[:200], datetime.now(UTC))
    vm = await _acquire(pool, holder, connection, closed)
    if vm is None:
        return
    log = structlog.get_logger().bind(vm=vm.name, profile=profile, client_pid=pid)
    cause = "its client left before it had the VM"
    try:
        _hand_over(connection, vm, service)
        seconds = time.perf_counter() - started
        service.acquire_times.add(seconds)
        service.leases += 1
        session = service.observer.lease_begins(connection, vm, seconds)
        log.info("lease_begins", ms=round(1000 * seconds, 2), kernel_id=holder.kernel_id)
        await _first(closed, vm.ended)
        cause = "its lease ended"
        if vm.ended.done():
            cause = vm.ended.result()
            with suppress(OSError):
                connection.send(encode({"event": "vm_gone", "reason": cause}))
            # the client closes when it has read that; one that does not is not waited for
            await asyncio.wait([closed], timeout=5.0)
    except OSError:
        log.info("client_gone")
    finally:
        closed.cancel()
        log.info("lease_ends", cause=cause)
        if session is not None:
            service.observer.lease_ends(session, cause)
        # the connection may end because the service stops: destroying must not be cancelled with it
        await asyncio.shield(asyncio.ensure_future(pool.release(vm, cause)))


async def _acquire(
    pool: ProfilePool, holder: LeaseHolder, connection: socket.socket, closed: asyncio.Future[None]
) -> PooledVM | None:
    """A VM from the pool; None if the client leaves while it waits."""
    told = ""

    def tell(message: str) -> None:
        nonlocal told
        if message != told:
            told = message
            with suppress(OSError):
                connection.send(encode({"event": "waiting", "message": message}))

    acquiring = asyncio.ensure_future(pool.acquire(holder, tell))
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
        if acquiring.done() and (acquiring.cancelled() or acquiring.exception() is not None):
            closed.cancel()


def _hand_over(connection: socket.socket, vm: PooledVM, service: PoolService) -> None:
    """Send the facts and the descriptor; our own copy of it is closed. Raises OSError."""
    assert vm.stream is not None
    # a VM may have been warm for hours, and the host asleep meanwhile
    vm.stream.send(encode_json(Kind.CLOCK, {"time_ns": time.time_ns()}))
    facts = _facts(vm, service)._asdict()
    socket.send_fds(connection, [encode({"event": "lease", "vm": facts})], [vm.stream.fileno()])
    vm.stream.close()
    vm.stream = None


def _facts(vm: PooledVM, service: PoolService) -> VMFacts:
    source = vm.source
    assert source is not None
    spec = source.golden.spec
    return VMFacts(
        name=vm.name,
        profile=vm.profile,
        accelerator=spec.accelerator,
        transport=spec.transport,
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        image=source.image.name,
        image_digest=source.image.digest,
        golden_key=source.golden.key,
        created_at=vm.created_at.isoformat(),
        qemu_version=service.factory.qemu_version,
        libvirt_version=service.factory.libvirt_version,
        warm_ms=vm.warm_ms,
        output_stall_s=service.config.output_stall_s,
        audit_code=service.config.audit_code,
    )


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _closed(connection: socket.socket, heard: Callable[[dict[str, Any]], None]) -> None:
    """Returns when the client closes its end. Notes that it sends meanwhile are ``heard``, the rest is dropped."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    with suppress(OSError):
        while data := await loop.sock_recv(connection, 65536):
            received += data
            while (end := received.find(b"\n")) >= 0:
                with suppress(PoolRequestError):
                    heard(decode(bytes(received[:end])))
                del received[: end + 1]
            if len(received) > MAX_REQUEST:
                return
