"""The pool service's event loop: its socket, its connections, its end. VMs are in ``pool``, start-up in ``main``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog

from vm_kernel import __version__, paths
from vm_kernel.config import LoadedConfig
from vm_kernel.errors import PoolRequestError, PoolUnavailable, VMKernelError
from vm_kernel.pool import http, systemd
from vm_kernel.pool.admission import Admission
from vm_kernel.pool.checkpoints import CheckpointStore
from vm_kernel.pool.factory import VMFactory
from vm_kernel.pool.lease import serve_lease
from vm_kernel.pool.lines import LineReader
from vm_kernel.pool.metrics import Durations
from vm_kernel.pool.observer import Observer
from vm_kernel.pool.peer import Peer, peer_of
from vm_kernel.pool.pool import ProfilePool
from vm_kernel.pool.protocol import decode, encode, error_event
from vm_kernel.pool.reload import Reloading
from vm_kernel.pool.state import PooledVM, VMState
from vm_kernel.pool.status import status_of

#: a client that connects must say what it wants within so many seconds
REQUEST_TIMEOUT_S = 10.0
#: connections at the same time; further ones wait in the socket's backlog
MAX_CONNECTIONS = 1000
#: the longest that a stop may wait for sessions, in seconds: a day
MAX_DRAIN_S = 86400.0


class PoolService:
    """Serves leases until it is told to stop, gets SIGTERM, or has been idle for long enough."""

    def __init__(self, loaded: LoadedConfig, allowed_uids: set[int], stay: bool = False) -> None:
        self.config = loaded.pool
        self.factory = VMFactory(self.config)
        self.admission = Admission(self.config, lambda: [vm for pool in self.pools.values() for vm in pool.vms])
        self.acquire_times = Durations()
        self.leases = 0
        self.started_at = datetime.now(UTC)
        self.pools: dict[str, ProfilePool] = {}
        self.observer = Observer(self)
        self._allowed_uids = allowed_uids
        self._stay = stay
        self._executor = ThreadPoolExecutor(max_workers=2 * max(4, os.cpu_count() or 1), thread_name_prefix="vm")
        self.checkpoints = CheckpointStore(self.config.checkpoint_disk_mib, self._executor)
        self._stopping = asyncio.Event()
        self._drain_until = 0.0
        self._reloading = Reloading(self, loaded)
        self._connections: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._stoppers: list[asyncio.Future[None]] = []
        self._log = structlog.get_logger()

    async def run(self, on_listening: Callable[[], None]) -> None:
        """Serve until the end. Raises HostError if libvirt cannot be opened; leaves nothing running or behind."""
        listener = _listen()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_end)
        loop.add_signal_handler(signal.SIGHUP, self._reloading.begin)
        try:
            leftovers = await loop.run_in_executor(self._executor, self.factory.open)
            self.checkpoints.open()
            if leftovers:
                self._log.warning("leftovers_destroyed", vms=leftovers)
            await self.observer.start()
            on_listening()
            self.pool("default").start()
            accepting = asyncio.create_task(self._accept(listener))
            idling = asyncio.create_task(self._idle_exit())
            await self._stopping.wait()
            idling.cancel()
            await self._drain()
            accepting.cancel()
        finally:
            await self._shut_down(listener)

    def pool(self, profile: str) -> ProfilePool:
        """The pool of a profile. Raises UnknownProfile."""
        if profile not in self.pools:
            self.pools[profile] = ProfilePool(
                self.config.profile(profile), self.config, self.factory, self._executor, self.admission
            )
            if self._stopping.is_set():
                self.pools[profile].ending = _stopping()
        return self.pools[profile]

    def check_running(self) -> None:
        """Raises PoolUnavailable if the service is stopping."""
        if self._stopping.is_set():
            raise _stopping()

    def stop(self, drain_s: float) -> None:
        """No new lease from now on; sessions have ``drain_s`` seconds to end. Said again, the new time counts."""
        self._drain_until = time.monotonic() + drain_s
        self._stopping.set()
        systemd.stopping(drain_s)
        if drain_s:
            self._tell_holders({"event": "draining", "deadline_s": drain_s})

    def _told_to_end(self) -> None:
        """SIGTERM. A second one does not wait."""
        self.stop(0.0 if self._stopping.is_set() else self.config.drain_s)

    def _leased(self) -> list[PooledVM]:
        busy = (VMState.LEASED, VMState.CHECKPOINTING)
        return [vm for pool in self.pools.values() for vm in pool.vms if vm.state in busy]

    def _tell_holders(self, event: dict[str, Any]) -> None:
        for vm in self._leased():
            if vm.tell is not None:
                vm.tell(event)

    async def _drain(self) -> None:
        """Until every session has ended, or its time is up."""
        await asyncio.gather(*(pool.end(_stopping()) for pool in self.pools.values()))
        if leases := len(self._leased()):
            self._log.info("draining", leases=leases, s=round(self._drain_until - time.monotonic(), 1))
        while True:
            if not self._leased() or time.monotonic() >= self._drain_until:
                return
            await asyncio.sleep(0.05)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                # out of descriptors, say: leave time for some to be freed
                self._slots.release()
                self._log.error("accept_failed", error=str(error))
                await asyncio.sleep(0.5)
                continue
            task = asyncio.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connection_done)

    def _connection_done(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        self._slots.release()

    async def _serve(self, connection: socket.socket) -> None:
        """One connection, from its request to its end. Never raises."""
        connection.setblocking(False)
        peer, request = Peer(0, -1), None
        try:
            peer = peer_of(connection)
            self._check_peer(peer)
            reader = LineReader(connection, _parse)
            while (request := await _request(reader)) is not None:
                await self._answer(connection, request, peer.pid)
        except VMKernelError as error:
            self._log.info("request_refused", error=type(error).__name__, message=error.message)
            self.observer.refused(peer, request, error)
            await _refuse(connection, error)
        except (OSError, asyncio.CancelledError):
            pass
        except Exception:
            self._log.exception("connection_failed")
        finally:
            connection.close()

    async def _answer(self, connection: socket.socket, request: dict[str, Any], pid: int) -> None:
        loop = asyncio.get_running_loop()
        match request.get("op"):
            case "acquire":
                await serve_lease(self, connection, request, pid)
            case "status":
                status = await status_of(self, history=request.get("history") is True)
                await loop.sock_sendall(connection, encode({"event": "status", **status}))
            case "metrics":
                text = self.observer.metrics.text()
                await loop.sock_sendall(connection, encode({"event": "metrics", "text": text}))
            case "http":
                await http.answer(connection, request, self.observer.metrics.text)
            case "stop":
                drain_s = _seconds(request.get("drain_s", 0))
                self._log.info("stop_requested", pid=pid, drain_s=drain_s)
                gone = loop.create_future()
                self._stoppers.append(gone)
                self.stop(drain_s)
                await asyncio.shield(gone)
                await loop.sock_sendall(connection, encode({"event": "stopped"}))
            case "reload":
                self._log.info("reload_requested", pid=pid)
                changes = await self._reloading.reload()
                await loop.sock_sendall(connection, encode({"event": "reloaded", **changes._asdict()}))
            case other:
                raise PoolRequestError(
                    f"The pool service was asked for {str(other)[:100]!r}, which it does not know.",
                    f"This is vm-kernel {__version__}; restart the service after an upgrade: `vm-kernel pool stop`.",
                )

    def _check_peer(self, peer: Peer) -> None:
        """Raises PoolRequestError if the user who connected may not use this pool."""
        if peer.uid not in self._allowed_uids:
            raise PoolRequestError(f"User {peer.uid} may not use the pool of user {os.geteuid()}.", "Start your own.")

    async def _idle_exit(self) -> None:
        """End the service when nobody has been connected for a while."""
        busy_until = time.monotonic()
        while True:
            await asyncio.sleep(min(5.0, self.config.idle_exit_s / 4 or 5.0))
            if self._connections or self._stay or not self.config.idle_exit_s:
                busy_until = time.monotonic()
            elif time.monotonic() - busy_until >= self.config.idle_exit_s:
                self._log.info("idle_exit", idle_s=self.config.idle_exit_s)
                self.stop(0.0)

    async def _shut_down(self, listener: socket.socket) -> None:
        """New clients find no socket; VMs go; then the connections are closed."""
        paths.pool_socket().unlink(missing_ok=True)
        listener.close()
        self.observer.close()
        await self._reloading.close()
        await asyncio.gather(*(pool.close(_stopping()) for pool in self.pools.values()))
        await asyncio.get_running_loop().run_in_executor(self._executor, self.factory.close)
        for facts in paths.run_dir().glob("profile-*"):
            facts.unlink(missing_ok=True)
        for gone in self._stoppers:
            gone.set_result(None)
        # those who asked for the stop get their answer; the others are cut
        _, pending = await asyncio.wait(self._connections, timeout=0.2) if self._connections else (None, set())
        for task in pending:
            task.cancel()
        self._executor.shutdown()


def _stopping() -> PoolUnavailable:
    return PoolUnavailable("The pool service is stopping.", "Run the cell again: that starts a new one.")


def _seconds(value: object) -> float:
    """Of a request. Raises PoolRequestError."""
    if isinstance(value, (int, float)) and 0 <= value <= MAX_DRAIN_S:
        return float(value)
    raise PoolRequestError(f"drain_s must be a number of seconds up to {MAX_DRAIN_S:g}.", "See pool/protocol.py.")


def _listen() -> socket.socket:
    """The pool's socket, for our user alone. Call with the lock held: what is there is a dead service's."""
    path = paths.pool_socket()
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o700)
    listener.listen(MAX_CONNECTIONS)
    listener.setblocking(False)
    return listener


async def _refuse(connection: socket.socket, error: VMKernelError) -> None:
    """Send the error, the last word of a connection, and see that it is read.

    A socket closed with unread bytes in it would take the answer back (ECONNRESET), so what the client still sends is
    read and dropped for a moment.
    """
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        await loop.sock_sendall(connection, encode(error_event(error)))
        connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(1.0):
            while await loop.sock_recv(connection, 65536):
                pass


async def _request(reader: LineReader) -> dict[str, Any] | None:
    """The next request of a connection, None when it was closed. Raises PoolRequestError."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return await reader.next()
    except TimeoutError:
        raise PoolRequestError(f"No request within {REQUEST_TIMEOUT_S:g} s.", "Connect when there is one.") from None


def _parse(line: bytes) -> dict[str, Any]:
    """A request of our protocol, or of HTTP."""
    return http.as_request(line) or decode(line)
