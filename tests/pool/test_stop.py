"""Stopping the service: graceful, complete, and possible at any moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CONFIG, ended, qemus, service_pid, stop_service, wait_until, write_config
from vm_kernel import paths
from vm_kernel.errors import PoolUnavailable
from vm_kernel.pool.client import PoolConnection


@pytest.fixture
def no_golden(vm_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pool that has to build its golden snapshot first."""
    stop_service()
    golden = vm_home / "golden-of-this-test"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VM_KERNEL_GOLDEN", str(golden))
        yield golden
        stop_service()


def test_stop_ends_every_vm_and_every_lease(vm_home: Path) -> None:
    connection = PoolConnection.open()
    connection.acquire()
    pid = service_pid()
    stop_service()
    assert not qemus(vm_home)
    assert not paths.pool_socket().exists()
    wait_until(lambda: ended(pid), 60.0, "the service has ended")
    with pytest.raises(PoolUnavailable, match="has ended"):
        while connection.read_event(5.0) is not None:
            pass
    connection.close()


def test_sigterm_is_graceful_too(vm_home: Path) -> None:
    PoolConnection.open().close()
    pid = service_pid()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: ended(pid), 60.0, "the service has ended")
    assert not qemus(vm_home)


def test_stop_while_the_golden_snapshot_is_being_built(no_golden: Path, vm_home: Path) -> None:
    connection = PoolConnection.open()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            connection.acquire()
        except PoolUnavailable as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: bool(qemus(vm_home)), 60.0, "the template runs")
    stop_service()
    waiting.join(60.0)
    assert len(errors) == 1
    assert not qemus(vm_home)
    assert not [path for path in no_golden.rglob("*") if path.is_file()], "a half-made snapshot was left"
    connection.close()


def test_an_idle_service_ends_by_itself(vm_home: Path) -> None:
    stop_service()
    write_config(CONFIG.replace("idle_exit_s = 0", "idle_exit_s = 1"))
    try:
        pid = service_pid()
        wait_until(lambda: ended(pid), 60.0, "the idle service has ended")
        assert not qemus(vm_home)
    finally:
        write_config(CONFIG)
