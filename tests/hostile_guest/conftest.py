"""A pool whose VMs are hostile guests on socketpairs; everything of the host that is tested is the real one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.manager import AsyncKernelManager

from tests.kernel.session import Session, pid_of
from vm_kernel.pool.protocol import VMFacts, encode

Start = Callable[[], AbstractAsyncContextManager[tuple[AsyncKernelManager, Session]]]


class HostilePool:
    """Hands out guests over the pool's own protocol; a checkpoint it refuses."""

    def __init__(self, door: socket.socket, home: Path) -> None:
        self.home = home
        self.cwd = home / "cwd"
        #: stderr of each kernel process
        self.logs: dict[int, Path] = {}
        self._door = door
        self._guests: list[subprocess.Popen[bytes]] = []

    def serve(self) -> None:
        """Until the door is closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._door.accept()
                threading.Thread(target=self._lease, args=(connection,), daemon=True).start()

    def end(self) -> None:
        """No guest is left."""
        self._door.close()
        for guest in self._guests:
            guest.kill()
            guest.wait()

    def _lease(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            ours, theirs = socket.socketpair()
            with ours, theirs:
                command = [sys.executable, "-m", "tests.hostile_guest.agent", str(theirs.fileno())]
                self._guests.append(subprocess.Popen(command, pass_fds=[theirs.fileno()]))
                line = encode({"event": "lease", "vm": _facts()._asdict()})
                socket.send_fds(connection, [line], [ours.fileno()])
            while data := connection.recv(1 << 16):
                for request in data.splitlines():
                    if json.loads(request).get("op") != "note":
                        refusal = {"event": "error", "error": "CheckpointError", "message": "None here.", "hint": ""}
                        connection.sendall(encode(refusal))


def _facts() -> VMFacts:
    texts = ("name", "profile", "accelerator", "transport", "image", "image_digest", "golden_key")
    others = ("qemu_version", "libvirt_version")
    facts: dict[str, Any] = dict.fromkeys((*texts, *others), "hostile")
    return VMFacts(**facts, memory_mib=0, vcpus=0, created_at=datetime.now(UTC).isoformat(), warm_ms=0.0, files="both")


@pytest.fixture(scope="session")
def hostile_pool(kernelspec: str) -> Iterator[HostilePool]:
    """The pool of every kernel and sandbox of this folder's tests."""
    home = Path(tempfile.mkdtemp(prefix="vmk-"))
    (home / "run").mkdir()
    (home / "cwd").mkdir()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(home / "run" / "pool.sock"))
        door.listen()
        pool = HostilePool(door, home)
        threading.Thread(target=pool.serve, daemon=True).start()
        yield pool
        pool.end()
    shutil.rmtree(home)


@pytest.fixture
def start(hostile_pool: HostilePool, kernelspec: str) -> Start:
    """``async with start() as (manager, session)``: a kernel with a hostile guest of its own."""

    @asynccontextmanager
    async def started() -> AsyncIterator[tuple[AsyncKernelManager, Session]]:
        manager = AsyncKernelManager(kernel_name=kernelspec)
        environment = os.environ | {"VM_KERNEL_HOME": str(hostile_pool.home)}
        log = hostile_pool.home / f"stderr-{id(manager)}"
        with log.open("wb") as stderr:
            await manager.start_kernel(cwd=hostile_pool.cwd, env=environment, stderr=stderr)
        hostile_pool.logs[pid_of(manager)] = log
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            yield manager, Session(client)
        finally:
            client.stop_channels()
            await manager.shutdown_kernel(now=not await manager.is_alive())

    return started


class Growth:
    """By how much the peak memory of a process has grown, in MiB, since this was made or reset."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen = 0
        self.reset()
        self._idle = self._peak()

    def reset(self) -> None:
        """Forget the peak."""
        self._seen = 0
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")

    @property
    def mib(self) -> int:
        """As far as anybody has looked, if the process has ended meanwhile."""
        with contextlib.suppress(OSError, TypeError):
            self._seen = self._peak() - self._idle
        return self._seen

    def _peak(self) -> int:
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return int(psutil.Process(pid).num_fds())
