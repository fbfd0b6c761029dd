"""These tests need KVM and vsock: they run in the lab host (see tests/lab) and nowhere else."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm_kernel.pool.client import PoolConnection

if not os.environ.get("VM_KERNEL_LAB"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def golden(vm_home: Path) -> Iterator[None]:
    """The first test of a cold run would wait for the golden snapshot longer than a lease may take.

    The pool's log comes out of the lab with the results.
    """
    connection = PoolConnection.open()
    deadline = time.monotonic() + 900
    while True:
        (profile,) = (entry for entry in connection.status()["profiles"] if entry["name"] == "default")
        if profile["warm"]:
            break
        assert time.monotonic() < deadline, profile
        time.sleep(1)
    connection.close()
    os.sync()  # the snapshot is kept for other runs, also if this lab host crashes
    yield
    shutil.copytree(vm_home / "log", "/results/log")


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    """A vsock socket of a process that has no lease."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        sock.settimeout(30)
        yield sock


@pytest.fixture
def connections() -> Iterator[list[PoolConnection]]:
    """A list; what is put into it is closed at the end."""
    opened: list[PoolConnection] = []
    yield opened
    for connection in opened:
        connection.close()
