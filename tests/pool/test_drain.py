"""Stopping gently: no new lease, holders are told, and have until the deadline."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.command import vm_kernel
from tests.conftest import StartKernel, ended, qemus, service_pid, wait_until
from tests.guest_session import GuestSession
from tests.kernel.session import Session
from tests.pool.conftest import Configured
from tests.pool.rest import TIMEOUT_S, status
from vm_kernel.errors import PoolUnavailable
from vm_kernel.pool.client import PoolConnection


def test_a_session_ends_in_its_own_time_and_the_service_with_it(vm_home: Path) -> None:
    connection = PoolConnection.open()
    session = GuestSession(connection.acquire())
    pid = service_pid()
    stopping = threading.Thread(target=lambda: vm_kernel("pool", "stop", "--drain", "600"))
    stopping.start()
    event = connection.read_event(20.0)
    assert event == {"event": "draining", "deadline_s": 600.0}
    with closing(PoolConnection.open(start_service=False)) as another, pytest.raises(PoolUnavailable, match="stopping"):
        another.acquire()
    wait_until(lambda: [vm["state"] for vm in status()["vms"]] == ["leased"], TIMEOUT_S, "warm VMs have gone")
    assert session.value("6 * 7") == 42
    session.stream.close()
    connection.close()
    stopping.join(60.0)
    wait_until(lambda: ended(pid), 60.0, "the service has ended")
    assert not qemus(vm_home)


async def test_notebooks_are_told_that_the_pool_is_being_shut_down(start_kernel: StartKernel, warm_pool: None) -> None:
    async with start_kernel() as (_, client):
        session = Session(client)
        cell = session.client.execute("1 + 1")
        await session.finish(cell)
        stopping = threading.Thread(target=lambda: vm_kernel("pool", "stop", "--drain", "600"))
        stopping.start()
        await session.until_output(cell, "this session ends in 600 s at the latest")
        assert (await session.run("6 * 7")).value == "42"
    stopping.join(60.0)


def test_sigterm_waits_for_sessions_as_configured_and_then_ends_them(configured: Configured, vm_home: Path) -> None:
    configured("c.PoolConfig.drain_s = 1.0")
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        pid = service_pid()
        os.kill(pid, signal.SIGTERM)
        assert connection.read_event(20.0) == {"event": "draining", "deadline_s": 1.0}
        event = connection.read_event(20.0)
        assert event is not None
        assert (event["event"], "stopping" in event["reason"]) == ("vm_gone", True)
        lease.stream.close()
    wait_until(lambda: ended(pid), 60.0, "the service has ended")
    assert not qemus(vm_home)


def test_a_second_stop_does_not_wait(vm_home: Path) -> None:
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        pid = service_pid()
        threading.Thread(target=lambda: vm_kernel("pool", "stop", "--drain", "600")).start()
        assert connection.read_event(20.0) is not None
        assert vm_kernel("pool", "stop").returncode == 0
        lease.stream.close()
    wait_until(lambda: ended(pid), 60.0, "the service has ended")
    assert not qemus(vm_home)
