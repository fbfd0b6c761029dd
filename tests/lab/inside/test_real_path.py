"""The main job under KVM and over vsock, as seen in QEMU's process and in the socket, not in our settings."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from guest_agent.transport import VSOCK_PORT
from tests.conftest import StartKernel, ended, eventually, qemu_of
from tests.guest_session import GuestSession
from tests.test_kills import leased_pids
from tests.test_sessions import run
from vm_kernel import Sandbox
from vm_kernel.errors import VMDied
from vm_kernel.pool.client import Lease, PoolConnection

#: in the guest: what Linux found under itself
CLOCKS = "open('/sys/devices/system/clocksource/clocksource0/available_clocksource').read().split()"


def open_files(pid: int) -> set[str]:
    """What a process has open."""
    return {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def address(lease: Lease) -> tuple[int, int]:
    """(CID, port) at the other end of a lease's stream, as the kernel of this host says."""
    assert lease.stream.family == socket.AF_VSOCK
    cid, port = lease.stream.getpeername()
    return cid, port


def guest_cid(pid: int) -> int:
    """The CID that a QEMU was started with."""
    (found,) = re.findall(r'"guest-cid":(\d+)', Path(f"/proc/{pid}/cmdline").read_text())
    return int(found)


def test_the_lab_is_what_it_claims_to_be() -> None:
    assert os.geteuid() != 0
    flags = Path("/proc/cpuinfo").read_text()
    assert " svm " in flags
    assert "kvm_amd" in Path("/proc/modules").read_text()
    with pytest.raises(PermissionError):
        Path("/etc/shadow").read_text()


def test_a_lease_is_a_kvm_guest_behind_a_vsock_socket(lease: Lease, vm_home: Path) -> None:
    assert (lease.vm.accelerator, lease.vm.transport) == ("kvm", "vsock")
    assert address(lease) == (lease.vm.cid, VSOCK_PORT)
    files = open_files(qemu_of(vm_home, lease.vm.name))
    assert {"/dev/kvm", "/dev/vhost-vsock", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0"} <= files
    guest = GuestSession(lease)
    assert "kvm-clock" in guest.value(CLOCKS)
    assert guest.value("sum(range(1000))") == 499500
    assert not any(name.startswith("vport") for name in guest.value("__import__('os').listdir('/dev')"))


def test_the_doctor_finds_nothing_to_complain_of(vm_home: Path, kernelspec: str) -> None:
    told = subprocess.run(["vm-kernel", "doctor", "--json"], capture_output=True, text=True, check=False)
    checks = json.loads(told.stdout)["checks"]
    bad = [check for check in checks if check["level"] != "ok"]
    assert not bad
    assert told.returncode == 0
    said = {check["name"]: check["summary"] for check in checks}
    assert said["accelerator"].startswith("KVM: ")
    assert said["transport"].startswith("vsock: ")


def test_ten_sessions_one_after_another(vm_home: Path) -> None:
    names = set()
    for number in range(10):
        connection = PoolConnection.open()
        try:
            lease = connection.acquire()
            assert address(lease)[0] == lease.vm.cid
            guest = GuestSession(lease)
            assert guest.value("globals().get('left', 0)") == 0
            assert guest.execute(f"left = {number + 1}; print(left)").text == f"{number + 1}\n"
            names.add(lease.vm.name)
        finally:
            connection.close()
    assert len(names) == 10


async def test_three_notebooks_at_once_have_a_cid_each(start_kernel: StartKernel, vm_home: Path) -> None:
    async with start_kernel() as (_, a), start_kernel() as (_, b), start_kernel() as (_, c):
        for number, client in enumerate((a, b, c)):
            assert await run(client, f"x = {number}; x") == str(number)
        cids = [guest_cid(pid) for pid in leased_pids()]
        assert len(cids) == len(set(cids)) == 3
        assert [await run(client, "x") for client in (a, b, c)] == ["0", "1", "2"]


async def test_interrupt_and_restart(start_kernel: StartKernel) -> None:
    async with start_kernel() as (manager, client):
        msg_id = client.execute("import time; print('begun', flush=True); time.sleep(600)")
        while True:
            message = await client.get_iopub_msg(timeout=120)
            if message["msg_type"] == "stream":
                break
        await manager.interrupt_kernel()
        while (reply := await client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != msg_id:
            pass
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        first = await run(client, "left = 1; open('/etc/machine-id').read()")
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=120)
        assert await run(client, "left") == "NameError"
        assert await run(client, "open('/etc/machine-id').read()") != first


async def test_a_rollback_has_another_cid_and_a_new_connection(warm_pool: None, vm_home: Path) -> None:
    async with Sandbox() as box:
        await box.execute("import os, subprocess; x = os.urandom(4 << 20); child = subprocess.Popen(['sleep', '1000'])")
        facts = "import hashlib; print(hashlib.sha256(x).hexdigest(), child.pid, child.poll())"
        before = (await box.execute(facts)).stdout
        await box.snapshots.create("state")
        old = box.vm
        assert (await box.execute("x = b''; child.kill(); print(child.wait())")).stdout == "-9\n"
        await box.snapshots.restore("state")
        new = box.vm
        assert old is not None
        assert new is not None
        assert new.name != old.name
        assert new.cid != old.cid, "the old VM lives until the new one has been taken"
        assert (await box.execute(facts)).stdout == before
        assert {"anon_inode:kvm-vm", "/dev/vhost-vsock"} <= open_files(qemu_of(vm_home, new.name))
        # the listener that was opened for the copy has gone: whoever connects now is refused
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as stranger, pytest.raises(OSError, match="reset"):
            stranger.settimeout(30)
            assert new.cid is not None
            stranger.connect((new.cid, VSOCK_PORT))
        assert (await box.execute("print(1 + 1)")).stdout == "2\n"


async def test_kill_9_of_qemu_is_told_and_the_next_session_works(start_kernel: StartKernel, vm_home: Path) -> None:
    async with Sandbox() as box:
        assert box.vm is not None
        pid = qemu_of(vm_home, box.vm.name)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: ended(pid), 60.0, "QEMU has gone")
        with pytest.raises(VMDied, match="virtual machine"):
            await box.execute("1")
    async with Sandbox() as box:
        assert (await box.execute("print(2)")).stdout == "2\n"
