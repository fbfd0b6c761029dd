"""A lease lives exactly as long as its connection, and a VM serves one lease."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import qemus, wait_until
from tests.guest_session import GuestSession
from vm_kernel.pool.client import Lease, PoolConnection


def names(pool: PoolConnection) -> dict[str, str]:
    return {vm["name"]: vm["state"] for vm in pool.status()["vms"]}


def test_a_lease_gives_a_vm_in_which_code_runs(lease: Lease, pool: PoolConnection) -> None:
    assert GuestSession(lease).value("6 * 7") == 42
    assert names(pool)[lease.vm.name] == "leased"
    assert lease.vm.accelerator in ("kvm", "tcg")
    assert lease.vm.transport in ("vsock", "virtio-serial")
    assert lease.vm.memory_mib == 384


def test_closing_the_connection_destroys_the_vm(vm_home: Path, pool: PoolConnection) -> None:
    connection = PoolConnection.open()
    name = connection.acquire().vm.name
    pid = next(vm["pid"] for vm in pool.status()["vms"] if vm["name"] == name)
    connection.close()
    wait_until(lambda: pid not in {process.pid for process in qemus(vm_home)}, 60.0, "the VM has gone")
    wait_until(lambda: name not in names(pool), 60.0, "the pool has forgotten the VM")


def test_the_pool_refills_at_once(pool: PoolConnection) -> None:
    wait_until(lambda: pool.status()["profiles"][0]["warm"] >= 2, 60.0, "the pool is full")
    connection = PoolConnection.open()
    connection.acquire()
    assert pool.status()["profiles"][0]["booting"] + pool.status()["profiles"][0]["warm"] >= 2
    connection.close()


def test_the_status_says_who_has_which_vm(lease: Lease, pool: PoolConnection) -> None:
    status = pool.status()
    row = next(vm for vm in status["vms"] if vm["name"] == lease.vm.name)
    assert row["lease"]["since_s"] >= 0
    assert row["unique_memory_mib"] > 1
    assert status["acquire_ms"]["count"] >= 1
    assert status["clone_ms"]["p50"] > 0
    assert status["totals"]["leases"] >= 1
    assert status["accelerator"]["reason"]


def test_a_vm_that_is_killed_is_reported_to_its_holder(lease: Lease, pool: PoolConnection, vm_home: Path) -> None:
    pid = next(vm["pid"] for vm in pool.status()["vms"] if vm["name"] == lease.vm.name)
    next(process for process in qemus(vm_home) if process.pid == pid).kill()
    event = lease.connection.read_event(5.0)
    assert event is not None
    assert event["event"] == "vm_gone"
    assert "QEMU" in event["reason"]


def test_a_warm_vm_that_is_killed_is_replaced(pool: PoolConnection, vm_home: Path) -> None:
    wait_until(lambda: pool.status()["profiles"][0]["warm"] >= 2, 60.0, "the pool is full")
    victim = next(vm for vm in pool.status()["vms"] if vm["state"] == "warm")
    next(process for process in qemus(vm_home) if process.pid == victim["pid"]).kill()
    wait_until(lambda: victim["name"] not in names(pool), 60.0, "the dead VM is forgotten")
    wait_until(lambda: pool.status()["profiles"][0]["warm"] >= 2, 60.0, "the pool is full again")


def test_a_client_that_asks_and_vanishes_leaves_nothing(vm_home: Path, pool: PoolConnection) -> None:
    from vm_kernel.pool.protocol import encode

    for _ in range(5):
        connection = PoolConnection.open()
        connection._sock.sendall(encode({"op": "acquire", "profile": "default"}))
        connection.close()
    wait_until(lambda: "leased" not in names(pool).values(), 60.0, "no VM is leased")
    assert len(qemus(vm_home)) <= 12
