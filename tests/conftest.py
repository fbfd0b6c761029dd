"""What all tests share: a home of their own, with a pool service, a kernelspec and the machine's image store.

Every VM here is a real one. Golden snapshots, which are named by content, are shared with the user's own pool.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import psutil
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from vm_kernel import paths
from vm_kernel.errors import PoolUnavailable
from vm_kernel.pool.client import Lease, PoolConnection

CONFIG = """
c.PoolConfig.min_warm = 2
c.PoolConfig.max_vms = 12
c.PoolConfig.acquire_timeout_s = 60.0
c.PoolConfig.idle_exit_s = 0
c.PoolConfig.profiles = {
    "small": {"memory_mib": 256, "preload": [], "min_warm": 0, "max_vms": 2},
    "roomy": {"memory_mib": 768, "preload": [], "min_warm": 0, "max_vms": 2},
}
"""

pytest_plugins = ["tests.workers"]

StartKernel = Callable[..., AbstractAsyncContextManager[tuple[AsyncKernelManager, AsyncKernelClient]]]


@pytest.fixture(scope="session")
def vm_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A VM_KERNEL_HOME for this run, or this worker, in the environment of everything that the tests start."""
    images, golden = paths.images_dir(), paths.golden_dir()
    home = Path(tempfile.mkdtemp(prefix="vmk-"))
    home.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VM_KERNEL_HOME", str(home))
        patch.setenv("VM_KERNEL_IMAGES", str(images))
        patch.setenv("VM_KERNEL_GOLDEN", str(golden))
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            folder = home / name.lower()
            folder.mkdir()
            patch.setenv(name, str(folder))
        # ahead of the kernelspecs that are installed beside this interpreter
        patch.setenv("JUPYTER_PATH", os.environ["JUPYTER_DATA_DIR"])
        write_config(CONFIG)
        if "PYTEST_XDIST_WORKER" in os.environ:
            # workers that begin together do not each build a golden snapshot
            with (tmp_path_factory.getbasetemp().parent / "golden-lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                _warm_up()
        yield home
        stop_service()
    assert not qemus(home), "a QEMU was left behind"
    shutil.rmtree(home)


def _warm_up() -> None:
    """Have a golden snapshot and a VM."""
    connection = PoolConnection.open()
    connection.acquire()
    connection.close()


@pytest.fixture
def pool(vm_home: Path) -> Iterator[PoolConnection]:
    """A connection to the running pool service."""
    connection = PoolConnection.open()
    yield connection
    connection.close()


@pytest.fixture
def lease(vm_home: Path) -> Iterator[Lease]:
    """A VM of one's own."""
    connection = PoolConnection.open()
    try:
        yield connection.acquire()
    finally:
        connection.close()


@pytest.fixture(scope="session")
def warm_pool(vm_home: Path) -> None:
    """A pool that has its golden snapshot and a VM."""
    _warm_up()


@pytest.fixture(scope="session")
def kernelspec(vm_home: Path) -> str:
    """The name of the installed kernelspec."""
    from vm_kernel.kernel.spec import install

    return install().name


@pytest.fixture
def start_kernel(kernelspec: str) -> StartKernel:
    """``async with start_kernel() as (manager, client)``: a kernel, started as JupyterLab does, ready to use."""

    @asynccontextmanager
    async def start(
        kernel_name: str = kernelspec, ready_timeout_s: float = 60.0, cwd: Path | None = None, **arguments: object
    ) -> AsyncIterator[tuple[AsyncKernelManager, AsyncKernelClient]]:
        manager = AsyncKernelManager(kernel_name=kernel_name, **arguments)
        await manager.start_kernel(cwd=cwd)
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=ready_timeout_s)
            yield manager, client
        finally:
            client.stop_channels()
            await manager.shutdown_kernel(now=not await manager.is_alive())

    return start


def write_config(text: str) -> None:
    """Replace the configuration file that the next pool service reads."""
    Path(os.environ["JUPYTER_CONFIG_DIR"], "vm_kernel_config.py").write_text(text)


def stop_service() -> None:
    """Stop the pool service if one runs."""
    try:
        connection = PoolConnection.open(start_service=False)
    except PoolUnavailable:
        return
    connection.stop()
    connection.close()


def service_pid() -> int:
    """Process id of the running pool service."""
    connection = PoolConnection.open()
    try:
        return int(connection.status()["pid"])
    finally:
        connection.close()


def leases() -> int:
    """How many VMs are in use."""
    connection = PoolConnection.open()
    try:
        return sum(bool(vm["lease"]) for vm in connection.status()["vms"])
    finally:
        connection.close()


def qemus(home: Path) -> list[psutil.Process]:
    """The QEMU processes of that home."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or []
        if (process.info["name"] or "").startswith("qemu-system") and any(str(home) in word for word in words):
            found.append(process)
    return found


def qemu_of(home: Path, vm: str) -> int:
    """Process id of the QEMU of the VM of that name; 0 if there is none (any more)."""
    return next((q.pid for q in qemus(home) if any(f"guest={vm}," in word for word in q.info["cmdline"])), 0)


def ended(pid: int) -> bool:
    """True if that process has ended, even if nobody has collected its exit status yet.

    A first thread that is a zombie is not the last one: whoever watches the process still takes it for alive.
    """
    try:
        process = psutil.Process(pid)
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() == 1
    except psutil.NoSuchProcess:
        return True


def wait_until(true: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Poll until ``true()``; fail with ``what`` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


async def eventually(true: Callable[[], bool], timeout_s: float, what: str) -> None:
    """``wait_until`` for asynchronous tests."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.02)
