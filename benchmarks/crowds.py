"""Measures many at once: leases, sessions, agents, and fresh VMs one after the other."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.environment import CROWD, MANY, status, wait_until_quiet
from benchmarks.samples import OURS, Results
from vm_kernel import Sandbox, VMPool
from vm_kernel.pool.client import PoolConnection
from vm_kernel.sandbox import ExecutionResult


def measure_turns(results: Results, rounds: int) -> None:
    """From lease to lease, and from a lease to a full pool again: one at a time, the pool quiet before each."""
    for _ in range(rounds):
        wait_until_quiet()
        first = PoolConnection.open()
        first.acquire().stream.close()
        wait_until_quiet()
        begin = time.perf_counter()
        first.close()
        second = PoolConnection.open()
        second.acquire().stream.close()
        results.add("lease_to_lease", 1000 * (time.perf_counter() - begin))
        second.close()
        wait_until_quiet()
        third = PoolConnection.open()
        begin = time.perf_counter()
        third.acquire().stream.close()
        _wait_for_warm()
        results.add("refill", time.perf_counter() - begin)
        third.close()
    clones = results.rows["clone_to_warm"].series[OURS].values
    if len(clones) > 1:
        results.add("clone_variation", 100 * statistics.stdev(clones) / statistics.mean(clones))


def _wait_for_warm() -> None:
    """As wait_until_quiet(), and a lease does not disturb it."""
    while True:
        (facts,) = (entry for entry in status()["profiles"] if entry["name"] == "default")
        if facts["warm"] >= facts["min_warm"]:
            return
        time.sleep(0.005)


def measure_crowds(results: Results, rounds: int) -> None:
    """Ten and fifty leases at once from a pool that has that many warm VMs."""
    for profile, count, key in (("many", MANY, "acquire_ten"), ("crowd", CROWD, "acquire_fifty")):
        for _ in range(rounds):
            _wake(profile)
            wait_until_quiet(profile)
            connections = [PoolConnection.open() for _ in range(count)]
            results.add(key, 1000 * _acquire_all(connections, profile))
            if profile == "crowd":
                asyncio.run(_use_all(results, connections))
            for connection in connections:
                connection.close()


def _wake(profile: str) -> None:
    """A profile begins to be filled with its first lease."""
    connection = PoolConnection.open()
    connection.acquire(profile).stream.close()
    connection.close()


def _acquire_all(connections: list[PoolConnection], profile: str) -> float:
    """Seconds from the first request to the last VM."""
    start = threading.Barrier(len(connections) + 1)

    def acquire(connection: PoolConnection) -> Any:
        start.wait()
        return connection.acquire(profile), time.perf_counter()

    with ThreadPoolExecutor(len(connections)) as threads:
        leases = [threads.submit(acquire, connection) for connection in connections]
        begin = time.perf_counter()
        start.wait()
        taken = [lease.result() for lease in leases]
    for lease, _ in taken:
        lease.stream.detach()  # it stays open: the VM is used below, and ends with its connection
    return max(moment for _, moment in taken) - begin


async def _use_all(results: Results, connections: list[PoolConnection]) -> None:
    """What fifty sessions take when each has run a cell. The leases above are only held; these are sandboxes."""
    for connection in connections:
        connection.close()
    await asyncio.to_thread(wait_until_quiet, "crowd")
    boxes = [Sandbox("crowd", name=f"session-{number}") for number in range(CROWD)]
    await asyncio.gather(*(box.start() for box in boxes))
    await asyncio.gather(*(box.execute("import math; math.pi") for box in boxes))
    names = {box.vm.name for box in boxes if box.vm is not None}
    seen = await asyncio.to_thread(status)
    for vm in seen["vms"]:
        if vm["name"] in names:
            results.add("session_memory", vm["unique_memory_mib"])
    await asyncio.gather(*(box.close() for box in boxes))


def measure_agents(results: Results, rounds: int) -> None:
    """Whole workflows through the Python API."""
    for _ in range(rounds):
        for _ in range(5):
            wait_until_quiet()
            results.add("workflow", asyncio.run(_workflow()))
        _wake("many")
        wait_until_quiet("many")
        results.add("agents", asyncio.run(_ten_agents()))
        wait_until_quiet()
        results.add("per_minute", asyncio.run(_executions(40)))


async def _workflow() -> float:
    begin = time.perf_counter()
    async with Sandbox() as box:
        await box.execute("1 + 1")
    return time.perf_counter() - begin


async def _ten_agents() -> float:
    async def agent(number: int) -> None:
        async with Sandbox("many", name=f"agent-{number}") as box:
            for step in range(5):
                result = await box.execute(f"x = {number} * {step}; print(x)")
                assert result.stdout == f"{number * step}\n"

    begin = time.perf_counter()
    await asyncio.gather(*(agent(number) for number in range(10)))
    return time.perf_counter() - begin


async def _executions(count: int) -> float:
    """A minute's worth, from so many."""
    begin = time.perf_counter()
    outcomes = await VMPool(at_once=4).map(["print(1)"] * count)
    seconds = time.perf_counter() - begin
    assert all(isinstance(outcome, ExecutionResult) and outcome.stdout == "1\n" for outcome in outcomes)
    return 60 * count / seconds
