"""kill -9 of the service at each step of a lease: clients are told, the next service finds nothing in its way."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack, closing
from pathlib import Path

from tests.conftest import service_pid, wait_until
from tests.pool.conftest import Configured
from tests.pool.rest import TIMEOUT_S, assert_clean, profile, used_and_at_rest, vms
from vm_kernel.errors import PoolUnavailable
from vm_kernel.pool.client import PoolConnection


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(nobody_listens, 60.0, "the service is dead")


def nobody_listens() -> bool:
    """A process that was killed is a zombie before its last thread has closed what it had open."""
    try:
        PoolConnection.open(start_service=False).close()
    except PoolUnavailable:
        return True
    return False


def test_while_a_lease_waits(configured: Configured, vm_home: Path) -> None:
    configured("c.PoolConfig.max_vms = 2")
    before = used_and_at_rest(vm_home)
    errors: list[Exception] = []

    def wait(connection: PoolConnection) -> None:
        try:
            connection.acquire()
        except PoolUnavailable as error:
            errors.append(error)

    with ExitStack() as connections:
        held, waiting = (connections.enter_context(closing(PoolConnection.open())) for _ in range(2))
        leases = [held.acquire(), connections.enter_context(closing(PoolConnection.open())).acquire()]
        thread = threading.Thread(target=wait, args=(waiting,))
        thread.start()
        wait_until(lambda: profile()["waiting"] == 1, TIMEOUT_S, "a lease waits")
        kill(service_pid())
        thread.join(60.0)
        for lease in leases:
            lease.stream.close()
    assert len(errors) == 1
    assert_clean(vm_home, before, same_service=False)


def test_when_a_vm_has_just_been_leased(vm_home: Path) -> None:
    before = used_and_at_rest(vm_home)
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        kill(service_pid())
        lease.stream.close()
    assert_clean(vm_home, before, same_service=False)


def test_while_a_vm_is_given_back(vm_home: Path) -> None:
    before = used_and_at_rest(vm_home)
    connections = [PoolConnection.open() for _ in range(2)]
    leases = [connection.acquire() for connection in connections]
    pid = service_pid()
    for connection in connections:
        connection.close()
    kill(pid)
    for lease in leases:
        lease.stream.close()
    assert_clean(vm_home, before, same_service=False)


def test_while_vms_boot(vm_home: Path) -> None:
    before = used_and_at_rest(vm_home)
    with ExitStack() as connections:
        opened = [connections.enter_context(closing(PoolConnection.open())) for _ in range(2)]
        leases = [connection.acquire() for connection in opened]
        wait_until(lambda: bool(vms("booting")), TIMEOUT_S, "a VM boots")
        kill(service_pid())
        for lease in leases:
            lease.stream.close()
    assert_clean(vm_home, before, same_service=False)
