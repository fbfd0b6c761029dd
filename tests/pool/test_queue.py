"""A full pool: who waits is served in order, knows its place, and is told what to do when its time is up."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest

from tests.conftest import CONFIG, wait_until, write_config
from tests.pool.conftest import Configured
from tests.pool.rest import TIMEOUT_S, assert_clean, profile, used_and_at_rest
from vm_kernel.errors import PoolFull, VMKernelError
from vm_kernel.pool.client import Lease, PoolConnection


class Waiting:
    """Asks for a VM in a thread; remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.lease: Lease | None = None
        self.error: VMKernelError | None = None
        self.served_at = 0.0
        self.connection = PoolConnection.open()
        self._thread = threading.Thread(target=self._acquire)
        self._thread.start()

    def _acquire(self) -> None:
        try:
            self.lease = self.connection.acquire(on_waiting=self.told.append)
            self.served_at = time.monotonic()
        except VMKernelError as error:
            self.error = error

    def join(self) -> None:
        """Wait for the answer."""
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def close(self) -> None:
        """Give the VM back, or wait no more."""
        self.connection.abandon()
        self.join()
        if self.lease is not None:
            self.lease.stream.close()
        self.connection.close()


def test_leases_are_served_in_the_order_in_which_they_came(configured: Configured, vm_home: Path) -> None:
    configured("c.PoolConfig.max_vms = 2")
    before = used_and_at_rest(vm_home)
    with ExitStack() as stack:
        holders = [stack.enter_context(closing(PoolConnection.open())) for _ in range(2)]
        leases = [holder.acquire() for holder in holders]
        waiting = []
        for number in range(1, 4):
            waiting.append(stack.enter_context(closing(Waiting())))
            wait_until(lambda number=number: profile()["waiting"] == number, TIMEOUT_S, "it waits")  # type: ignore[misc]
        wait_until(lambda: bool(waiting[2].told), TIMEOUT_S, "it has been told")
        assert waiting[2].told[-1] == "all 2 VMs are in use; place 3 of 3 in the queue"
        for holder, lease in zip(holders, leases, strict=True):
            holder.close()
            lease.stream.close()
        waiting[0].join()
        waiting[1].join()
        wait_until(lambda: "place 1 of 1" in waiting[2].told[-1], TIMEOUT_S, "it has moved on")
        waiting[0].close()
        waiting[2].join()
        assert waiting[0].served_at <= waiting[1].served_at <= waiting[2].served_at
        # served in turn, the last one saw its place change
        places = [text.partition("; ")[2] for text in waiting[2].told if "place" in text]
        assert places[0].startswith("place 3 of 3")
        assert places[-1].startswith("place 1 of 1")
    assert_clean(vm_home, before)


def test_a_queue_has_a_limit(configured: Configured) -> None:
    configured("c.PoolConfig.max_vms = 1; c.PoolConfig.min_warm = 1; c.PoolConfig.max_queue = 1")
    with ExitStack() as stack:
        lease = stack.enter_context(closing(PoolConnection.open())).acquire()
        stack.enter_context(closing(Waiting()))
        wait_until(lambda: profile()["waiting"] == 1, TIMEOUT_S, "one waits")
        with pytest.raises(PoolFull, match="1 requests are waiting") as caught:
            stack.enter_context(closing(PoolConnection.open())).acquire()
        assert "max_queue" in caught.value.hint
        lease.stream.close()


def test_no_vm_is_started_that_the_host_has_not_the_memory_for(configured: Configured, vm_home: Path) -> None:
    # whatever this machine has, and others give back meanwhile: it is not to be touched
    reserve_mib = psutil.virtual_memory().total >> 20
    configured(f"c.PoolConfig.memory_reserve_mib = {reserve_mib}; c.PoolConfig.acquire_timeout_s = 3.0")
    with closing(Waiting()) as first:
        first.join()
        assert isinstance(first.error, PoolFull)
        assert "the host has not the memory for another VM" in first.error.message
        assert "vm_memory_mib" in first.error.hint
        assert any(text.endswith("place 1 of 1 in the queue") and "memory" in text for text in first.told)
    assert "the host has not the memory" in profile()["detail"]
    with closing(Waiting()) as second, closing(PoolConnection.open()) as connection:
        wait_until(lambda: bool(second.told), TIMEOUT_S, "it waits")
        write_config(CONFIG)
        connection.reload()
        second.join()
        assert second.lease is not None
    assert profile()["detail"] == ""
