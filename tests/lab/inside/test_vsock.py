"""vsock in earnest: every process of the host may connect to every CID, and every guest to the host."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from guest_agent.transport import VSOCK_PORT
from tests.conftest import ended, qemu_of, qemus, wait_until
from tests.guest_session import GuestSession
from tests.lab.inside.test_real_path import address, guest_cid
from vm_kernel import Sandbox
from vm_kernel.errors import VMKernelError
from vm_kernel.pool.client import Lease, PoolConnection

#: linux/vhost.h: VHOST_VSOCK_SET_GUEST_CID
_SET_GUEST_CID = 0x4008AF60

#: waits at every CID that a VM may get, and keeps what it gets: a line for each VM that it came first to
INTRUDER = f"""
import socket, threading, time
kept = []

def wait_at(cid):
    while True:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        sock.settimeout(30)
        try:
            # to a VM that does not run yet this waits, and is the first that it hears of when it does
            sock.connect((cid, {VSOCK_PORT}))
            kept.append(sock)
            print("came first to", cid, flush=True)
        except OSError:
            pass
        time.sleep(0.1)

for cid in range(3, 13):
    threading.Thread(target=wait_at, args=(cid,)).start()
print("begun", flush=True)
"""


def hold_cid(cid: int) -> int | None:
    """Take a CID as a VM of somebody else does. Returns the descriptor that holds it; None if it is taken."""
    device = os.open("/dev/vhost-vsock", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _SET_GUEST_CID, struct.pack("Q", cid))
    except OSError:
        os.close(device)
        return None
    return device


def test_a_second_process_is_refused_and_the_session_goes_on(lease: Lease, stranger: socket.socket) -> None:
    guest = GuestSession(lease)
    assert guest.value("1 + 1") == 2
    with pytest.raises(OSError, match="reset"):
        stranger.connect(address(lease))
    assert guest.value("2 + 2") == 4


def test_a_process_that_comes_first_costs_the_vm_and_nobody_is_given_it(
    vm_home: Path, pool: PoolConnection, connections: list[PoolConnection], tmp_path: Path
) -> None:
    def take() -> None:
        # the pool makes new VMs, which the intruder is there first to greet, until it gives up
        with suppress(VMKernelError):
            connections.append(PoolConnection.open())
            assert GuestSession(connections[-1].acquire()).value("6 * 7") == 42, "a VM that is handed out is one's own"

    failures = pool.status()["totals"]["failures"]
    said = tmp_path / "said"
    with said.open("w") as file, ThreadPoolExecutor(1) as executor:
        intruder = subprocess.Popen(["sudo", "-u", "neighbour", sys.executable, "-c", INTRUDER], stdout=file)
        try:
            wait_until(lambda: "begun" in said.read_text(), 60.0, "the intruder lies in wait")
            taken = executor.submit(take)
            wait_until(lambda: pool.status()["totals"]["failures"] > failures, 150.0, "the pool notices")
            assert "came first to" in said.read_text()
        finally:
            subprocess.run(["sudo", "pkill", "-KILL", "-u", "neighbour"], check=False)
            intruder.wait()
        taken.result(120)
    connection = PoolConnection.open()
    connections.append(connection)
    assert GuestSession(connection.acquire()).value("6 * 7") == 42
    assert "may have come first" in (vm_home / "log" / "pool.log").read_text()

    def known() -> int:
        status = pool.status()
        return len(status["vms"]) + sum(profile["prepared"] for profile in status["profiles"])

    wait_until(lambda: len(qemus(vm_home)) == known(), 60.0, "no VM is left that the pool does not know")


def test_cids_of_others_are_left_alone(vm_home: Path, connections: list[PoolConnection]) -> None:
    ours = {guest_cid(process.pid) for process in qemus(vm_home)}
    held = {cid: device for cid in range(3, 12) if (device := hold_cid(cid)) is not None}
    try:
        assert held
        assert not set(held) & ours, "the kernel gives a CID once"
        for _ in range(3):
            connections.append(PoolConnection.open())
            lease = connections[-1].acquire()
            assert GuestSession(lease).value("1 + 1") == 2
            wait_until(
                lambda: not set(held) & {guest_cid(process.pid) for process in qemus(vm_home)}, 1.0, "no CID of others"
            )
        cids = [guest_cid(process.pid) for process in qemus(vm_home)]
        assert len(cids) == len(set(cids))
        assert max(cids) >= 12
    finally:
        for device in held.values():
            os.close(device)


def test_two_pools_do_not_get_in_each_others_way(
    vm_home: Path, tmp_path: Path, connections: list[PoolConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    connections.append(PoolConnection.open())
    first = connections[-1].acquire()
    home = Path(f"/tmp/vmk-second-{os.getpid()}")
    home.mkdir(0o700)
    shutil.copy(vm_home / "host-probe.json", home)  # that took ten seconds
    with monkeypatch.context() as second:
        second.setenv("VM_KERNEL_HOME", str(home))
        connections.append(PoolConnection.open())
        try:
            lease = connections[-1].acquire()
            assert lease.vm.cid != first.vm.cid
            mine = {guest_cid(process.pid) for process in qemus(vm_home)}
            assert not mine & {guest_cid(process.pid) for process in qemus(home)}
            assert GuestSession(lease).value("1 + 1") == GuestSession(first).value("1 + 1") == 2
        finally:
            PoolConnection.open().stop()
            subprocess.run(["rm", "-rf", str(home)], check=True)


async def test_a_guest_that_connects_to_the_host_finds_nobody(warm_pool: None) -> None:
    seen_port = 7777
    ports = [VSOCK_PORT, 1, 22, 111, 1024, 1234, 5000, seen_port, 9999, 16509, 0xFFFFFFFE]
    code = f"""
import socket
from concurrent.futures import ThreadPoolExecutor

def answers(address):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        return sock.connect_ex(address) == 0

addresses = [(cid, port) for cid in (socket.VMADDR_CID_HOST, 0) for port in {ports}]
with ThreadPoolExecutor(len(addresses)) as executor:
    print([address for address, found in zip(addresses, executor.map(answers, addresses)) if found])
"""
    async with Sandbox() as box, Sandbox() as other:
        assert (await box.execute(code)).stdout == "[]\n"
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
            listener.bind((socket.VMADDR_CID_ANY, seen_port))
            listener.listen()
            # whoever listens on vsock on the host serves all guests: nothing of ours does
            assert (await box.execute(code)).stdout == f"[({socket.VMADDR_CID_HOST}, {seen_port})]\n"
        # and guests do not reach each other
        assert other.vm is not None
        attempt = code.replace("(socket.VMADDR_CID_HOST, 0)", f"({other.vm.cid},)")
        assert (await box.execute(attempt)).stdout == "[]\n"


@pytest.mark.parametrize("how", ["half-open", "reset by the VM's end", "closed"])
def test_a_connection_that_breaks_ends_the_vm(how: str, vm_home: Path, connections: list[PoolConnection]) -> None:
    connections.append(PoolConnection.open())
    lease = connections[-1].acquire()
    assert GuestSession(lease).value("1 + 1") == 2
    pid = qemu_of(vm_home, lease.vm.name)
    if how == "half-open":
        lease.stream.shutdown(socket.SHUT_WR)
    elif how == "closed":
        lease.stream.close()
    else:
        os.kill(pid, signal.SIGKILL)
        lease.stream.setblocking(True)
        lease.stream.settimeout(60)
        with pytest.raises(ConnectionResetError):
            lease.stream.recv(1)
    wait_until(lambda: ended(pid), 60.0, "the VM has gone")
    deadline = time.monotonic() + 30
    event = None
    while event is None and time.monotonic() < deadline:
        event = connections[-1].read_event(1.0)
    assert event is not None
    assert event["event"] == "vm_gone"


@pytest.mark.timeout(600)
async def test_a_gigabyte_arrives_whole(warm_pool: None, tmp_path: Path) -> None:
    """A sparse file of zeros and, every 4 MiB and across the borders of messages, something that is not."""
    marks = 256
    code = f"""
import hashlib
import os
os.mkdir("folder")
with open("folder/big", "wb") as file:
    file.truncate(1 << 30)
    for number in range({marks}):
        file.seek(number * (4 << 20) + number * 977)
        file.write(hashlib.sha512(str(number).encode()).digest() * 16)
"""
    async with Sandbox() as box:
        assert (await box.execute(code)).ok
        begin = time.perf_counter()
        await box.files.get_tree("folder", tmp_path / "copy")
        seconds = time.perf_counter() - begin
        print(f"1 GiB over vsock in {seconds:.1f} s, {1024 / seconds:.1f} MiB/s")
        target = tmp_path / "copy" / "big"
        assert target.stat().st_size == 1 << 30
        with target.open("rb") as file:
            for number in range(marks):
                part = bytearray(4 << 20)
                text = hashlib.sha512(str(number).encode()).digest() * 16
                part[number * 977 : number * 977 + len(text)] = text
                read = file.read(4 << 20)
                assert read == part, f"part {number} differs"
        target.unlink()
