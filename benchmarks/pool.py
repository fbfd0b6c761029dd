"""Measures the pool service: golden snapshots, clones, leases, and what an idle VM costs."""

from __future__ import annotations

import shutil
import time

from benchmarks.environment import MANY, status, stop_pool, wait_until_quiet
from benchmarks.samples import Results
from vm_kernel import paths
from vm_kernel.pool.client import PoolConnection

#: seconds that a VM is left alone before its memory is read
SETTLE_S = 10.0


def measure_golden(results: Results, rounds: int) -> None:
    """Build the snapshot from nothing, then load it: each time with a new service. The last one keeps running."""
    for _ in range(rounds):
        stop_pool()
        shutil.rmtree(paths.golden_dir(), ignore_errors=True)
        stages = _watch_start()
        results.add("cold_boot", stages["booting"])
        results.add("golden_build", stages["booting"] + stages["writing"])
        wait_until_quiet()
        stop_pool()
        results.add("golden_load", _watch_start()["loading"])
        wait_until_quiet()


def _watch_start() -> dict[str, float]:
    """Start the service; seconds of each stage until the snapshot is there, by what the service says it is doing."""
    stages = dict.fromkeys(("booting", "writing", "loading", "other"), 0.0)
    connection = PoolConnection.open()
    before = time.perf_counter()
    try:
        while True:
            (profile,) = (entry for entry in connection.status()["profiles"] if entry["name"] == "default")
            now = time.perf_counter()
            if profile["state"] != "building":
                return stages
            stages[_stage(profile["detail"])] += now - before
            before = now
            time.sleep(0.01)
    finally:
        connection.close()


def _stage(detail: str) -> str:
    if "booting" in detail:
        return "booting"
    if "loading" in detail:
        return "loading"
    return "writing" if "template" in detail or "writing" in detail else "other"


def measure_leases(results: Results, rounds: int) -> None:
    """Acquire and give back, one at a time, with a full pool: each lease also tells how its clone was made."""
    for number in range(rounds):
        wait_until_quiet()
        connection = PoolConnection.open()
        try:
            begin = time.perf_counter()
            lease = connection.acquire()
            seconds = time.perf_counter() - begin
            lease.stream.close()
        finally:
            connection.close()
        results.add("acquire", 1000 * seconds)
        results.add("acquire_p99", 1000 * seconds)
        if number >= 2:  # the first two VMs were cloned both at once
            results.add("clone_to_warm", lease.vm.warm_ms / 1000)


def measure_own_memory(results: Results, rounds: int) -> None:
    """Clones that share no memory with others: how long they take. The profile begins to be filled with its first."""
    for number in range(rounds + 2):
        connection = PoolConnection.open()
        try:
            lease = connection.acquire("own")
            lease.stream.close()
        finally:
            connection.close()
        wait_until_quiet("own")
        if number >= 2:
            results.add("own_clone_to_warm", lease.vm.warm_ms / 1000)


def measure_memory(results: Results) -> None:
    """Memory of each of ten idle warm VMs that nobody else shares."""
    connection = PoolConnection.open()
    try:
        # the profile begins to be filled with its first lease, which takes one of its places
        connection.acquire("many").stream.close()
    finally:
        connection.close()
    wait_until_quiet("many")
    time.sleep(SETTLE_S)
    seen = status()
    warm = [vm for vm in seen["vms"] if vm["profile"] == "many" and vm["state"] == "warm"]
    if len(warm) != MANY:
        raise SystemExit(f"There are {len(warm)} idle VMs instead of {MANY}.")
    for vm in warm:
        results.add("unique_memory", vm["unique_memory_mib"])
