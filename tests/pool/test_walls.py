"""A pool's VMs seen from the host: who their QEMUs are, what they may do, and what of theirs others can reach.

The command line of a QEMU is in tests/vm/test_command_line.py.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import service_pid
from tests.pool.rest import vms
from tests.vm import walls
from tests.vm.child import Child
from vm_kernel import paths
from vm_kernel.pool.client import Lease, PoolConnection
from vm_kernel.vm import bounds

NOBODY = 65534
#: libvirt's own caches and folders below its root, which is a folder of ours alone
OF_LIBVIRT = ("cache/", "run/qemu/dbus")


@pytest.fixture(scope="module")
def lease(vm_home: Path) -> Iterator[Lease]:
    """One VM for all these tests."""
    with closing(PoolConnection.open()) as connection:
        yield connection.acquire()


@pytest.mark.parametrize("state", ["warm", "leased"])
def test_a_qemu_is_nobody_special(lease: Lease, state: str) -> None:
    service = walls.status(service_pid())
    for pid in filter(None, vms(state).values()):
        status = walls.status(pid)
        assert {name: status[name] for name in walls.WALLED} == walls.WALLED
        assert status["Uid"] == service["Uid"]
        assert status["Gid"] == service["Gid"]
        assert set(status["Uid"].split()) != {"0"}
        assert status["Groups"] == service["Groups"]
        limits = walls.limits(pid)
        assert (limits.core, limits.file) == ("0", str(bounds.FILE_BYTES))
        assert limits.descriptors == str(bounds.DESCRIPTORS)
        assert bounds.OWN_MEMORY_MIB << 20 < int(limits.data) < 4 << 30


@pytest.mark.parametrize("state", ["warm", "leased"])
def test_a_qemu_has_open_what_it_needs_and_the_image_for_reading_only(lease: Lease, state: str) -> None:
    for name, pid in vms(state).items():
        files = walls.open_files(pid)
        kinds = Counter(file.rpartition(" ")[0].rpartition("/")[2] for file in files.elements())
        assert [file for file in files if "root.erofs" in file and not file.endswith(" r")] == []
        own = {"null", "root.erofs", f"{name}.log", f"{name}.pid", "memfd:vm-kernel-golden (deleted)"}
        assert set(kinds) == own | {"socket:", "anon_inode:[eventfd]", "anon_inode:[signalfd]"}
        assert kinds["socket:"] <= 4, "its monitor and its channel"
        assert sum(kinds.values()) < bounds.DESCRIPTORS / 2


def test_guest_memory_is_neither_merged_nor_dumped_and_its_image_is_sealed(lease: Lease) -> None:
    (pid,) = vms("leased").values()
    flags = walls.mapped_flags(pid, "memfd:vm-kernel-golden")
    assert "dd" in flags, "left out of core dumps"
    assert "mg" not in flags, "KSM does not look at it"
    service = Path(f"/proc/{service_pid()}/fd")
    images = [fd for fd in service.iterdir() if "vm-kernel-golden" in str(fd.readlink())]
    assert images
    for image in images:
        with image.open("rb") as file:
            seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def test_the_service_can_become_nothing_else(lease: Lease) -> None:
    status = walls.status(service_pid())
    assert status["Uid"].split()[0] != "0"
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Umask"]) == ("1", "0077")
    if os.geteuid() == 0:  # one that an ordinary user starts cannot empty it, and NoNewPrivs does the same
        assert status["CapBnd"] == "0" * 16


def test_what_the_service_keeps_is_its_users_alone(lease: Lease) -> None:
    seen = 0
    for folder in (paths.run_dir(), paths.log_file().parent, paths.home() / "checkpoints", paths.home() / "boot"):
        for path in (folder, *folder.rglob("*")):
            if any(part in str(path) for part in OF_LIBVIRT):
                continue
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # of a VM that has just gone
                continue
            seen += 1
            assert stat.S_IMODE(mode) & 0o077 == 0, f"others may reach {path}"
            assert not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o111 == 0, f"{path} is no program"
    assert seen > 20


def test_nobody_else_may_use_the_pool(lease: Lease) -> None:
    door = paths.pool_socket()
    assert stat.S_IMODE(door.stat().st_mode) == 0o700
    assert stat.S_IMODE(door.parent.stat().st_mode) == 0o700
    if os.geteuid() != 0:  # only root can be somebody else
        return
    way = (paths.home(), door.parent, door)
    try:  # open for everybody, as if somebody had done that by mistake: the service looks for itself who it is
        for path in way:
            path.chmod(0o777)
        assert b"may not use the pool" in Child(_ask_as_nobody, door, as_root=True).result()
    finally:
        for path in way:
            path.chmod(0o700)


def _ask_as_nobody(door: Path) -> bytes:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(str(door))
        connection.sendall(b'{"op": "status"}\n')
        return connection.recv(65536)
