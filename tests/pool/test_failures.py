"""What fails, fails alone: QEMUs that die or freeze, files that vanish, libvirt that refuses. Nothing is left of it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

from tests.conftest import qemu_of, wait_until
from tests.pool.conftest import Configured
from tests.pool.rest import TIMEOUT_S, Rest, assert_clean, profile, shells, take_until_it_fails, used_and_at_rest, vms
from vm_kernel import paths
from vm_kernel.image.store import open_image
from vm_kernel.pool.client import PoolConnection


def is_stopped(process: psutil.Process) -> bool:
    """Also true if it has been replaced already."""
    return not process.is_running() or process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)


@pytest.fixture
def rest(vm_home: Path) -> Rest:
    """The usual service, at rest."""
    return used_and_at_rest(vm_home)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_warm_vm_whose_qemu_is_killed_or_stopped_is_replaced(rest: Rest, vm_home: Path, how: signal.Signals) -> None:
    name, pid = next(iter(vms("warm").items()))
    os.kill(pid, how)
    wait_until(lambda: name not in vms("warm"), TIMEOUT_S, "the VM is gone")
    assert profile()["failures_by_cause"]["ended"] >= 1
    assert_clean(vm_home, rest)


def test_stopped_warm_vms_are_not_handed_out(rest: Rest, vm_home: Path) -> None:
    stopped = [psutil.Process(pid) for pid in vms("warm").values()]
    for process in stopped:
        process.suspend()
    wait_until(lambda: all(is_stopped(process) for process in stopped), 60.0, "they stand still")
    assert_clean(vm_home, rest)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_prepared_qemu_that_is_killed_or_stopped_is_replaced(rest: Rest, vm_home: Path, how: signal.Signals) -> None:
    (pid,) = shells(vm_home)
    os.kill(pid, how)
    wait_until(lambda: shells(vm_home) not in ([pid], []), TIMEOUT_S, "there is another one")
    assert_clean(vm_home, rest)


def test_a_vm_that_is_killed_while_it_boots_is_tried_again(rest: Rest, vm_home: Path) -> None:
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        killed = 0
        while not killed:
            for name in vms("booting"):
                if pid := qemu_of(vm_home, name):
                    os.kill(pid, signal.SIGKILL)
                    killed = pid
        lease.stream.close()
    assert_clean(vm_home, rest)


def test_a_leased_vm_that_is_stopped_can_be_given_back(rest: Rest, vm_home: Path) -> None:
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        os.kill(vms("leased")[lease.vm.name], signal.SIGSTOP)
        lease.stream.close()
    assert_clean(vm_home, rest)


def test_a_profile_that_libvirt_cannot_serve_is_broken_and_mends_itself(rest: Rest, vm_home: Path) -> None:
    sockets = paths.run_dir() / "lv" / "vm"
    sockets.chmod(0o500)
    try:
        with ExitStack() as connections:
            assert "could not be started" in take_until_it_fails(connections).message
            assert profile()["state"] == "broken"
            assert "Permission denied" in profile()["detail"]
            assert profile()["failures_by_cause"]["clone"] >= 3
            sockets.chmod(0o700)
            wait_until(lambda: profile()["state"] == "ok", TIMEOUT_S, "the profile has mended itself")
    finally:
        sockets.chmod(0o700)
    assert profile()["detail"] == ""
    assert_clean(vm_home, rest)


@pytest.fixture
def own_image(configured: Configured, vm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an image that only this test's service uses: its files are links to the real ones."""
    image = open_image("default")
    store = vm_home / "own-images"
    folder = store / image.digest
    folder.mkdir(parents=True)
    for path in image.folder.iterdir():
        (folder / path.name).symlink_to(path)
    (store / "names").mkdir()
    (store / "names" / "default").symlink_to(f"../{image.digest}")
    monkeypatch.setenv("VM_KERNEL_IMAGES", str(store))
    configured("")
    yield folder
    configured("")
    shutil.rmtree(store)


def test_an_image_that_vanishes_breaks_the_profile_until_it_is_back(own_image: Path, vm_home: Path) -> None:
    before = used_and_at_rest(vm_home)
    root = own_image / open_image("default").root.name
    real = root.readlink()
    root.unlink()
    with ExitStack() as connections:
        take_until_it_fails(connections)
        # now the image itself is looked at, and its absence has a name
        wait_until(lambda: "image" in profile()["failures_by_cause"], TIMEOUT_S, "it is tried again")
        assert profile()["state"] == "broken"
        assert "root.erofs" in profile()["detail"]
        root.symlink_to(real)
        wait_until(lambda: profile()["state"] == "ok", TIMEOUT_S, "the profile has mended itself")
    assert_clean(vm_home, before)
