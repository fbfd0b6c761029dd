"""kill -9 of each process at work: nothing is left behind after the next start, and the next notebook runs."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from tests.conftest import StartKernel, ended, eventually, qemus, service_pid
from tests.test_sessions import run
from vm_kernel import paths
from vm_kernel.pool.client import PoolConnection


def leased_pids() -> set[int]:
    connection = PoolConnection.open()
    try:
        return {vm["pid"] for vm in connection.status()["vms"] if vm["state"] == "leased"}
    finally:
        connection.close()


async def test_killing_the_kernel_process_ends_its_vm_within_two_seconds(
    start_kernel: StartKernel, vm_home: Path
) -> None:
    async with start_kernel() as (manager, client):
        assert await run(client, "1") == "1"
        (vm,) = leased_pids()
        await manager.signal_kernel(signal.SIGKILL)
        await eventually(lambda: ended(vm), 60.0, "the VM of a killed kernel process has gone")
    async with start_kernel() as (_, client):
        assert await run(client, "2") == "2"


async def test_killing_qemu_is_seen_and_the_next_notebook_runs(start_kernel: StartKernel, vm_home: Path) -> None:
    async with start_kernel() as (manager, client):
        await run(client, "1")
        (vm,) = leased_pids()
        os.kill(vm, signal.SIGKILL)
        await eventually(lambda: ended(vm), 60.0, "QEMU has gone")
        for _ in range(100):
            if not await manager.is_alive():
                break
            await asyncio.sleep(0.05)
        assert not await manager.is_alive(), "the kernel process must not outlive its VM"
    async with start_kernel() as (_, client):
        assert await run(client, "2") == "2"


async def test_killing_the_pool_service_leaves_nothing_after_the_next_start(
    start_kernel: StartKernel, vm_home: Path
) -> None:
    async with start_kernel() as (_, client):
        await run(client, "1")
        before = {process.pid for process in qemus(vm_home)}
        assert before
        os.kill(service_pid(), signal.SIGKILL)
    async with start_kernel() as (_, client):
        assert await run(client, "2") == "2"
        after = {process.pid for process in qemus(vm_home)}
        assert not before & after, "a VM of the killed service still runs"
    connection = PoolConnection.open()
    known = {vm["name"] for vm in connection.status()["vms"]}
    connection.close()
    strangers = [
        path
        for path in paths.run_dir().rglob("*")
        if path.name.startswith("vm-") and not any(name in str(path) for name in known)
    ]
    assert not strangers, "files of VMs that are no more"
