"""Measures checkpoints, rollbacks and forks of a session that has changed 20 MB."""

from __future__ import annotations

import asyncio
import time

from benchmarks.environment import wait_until_quiet
from benchmarks.samples import Results
from vm_kernel import Sandbox

CHANGED = "x = bytearray(b'a') * (20 << 20)"


def measure_checkpoints(results: Results, rounds: int, forks: int | None = None) -> None:
    """All through the Python API, the pool quiet before each. ``forks``: rounds of forks, half as many unless told."""
    asyncio.run(_measure(results, rounds, max(1, rounds // 2) if forks is None else forks))


async def _measure(results: Results, rounds: int, forks: int) -> None:
    async with Sandbox() as box:
        await box.execute(CHANGED)
        for _ in range(rounds):
            await _quiet()
            begin = time.perf_counter()
            snapshot = await box.snapshots.create("state")
            results.add("checkpoint", 1000 * (time.perf_counter() - begin))
            results.add("checkpoint_pause", snapshot.pause_ms)
            begin = time.perf_counter()
            await box.snapshots.list()
            results.add("checkpoint_list", 1000 * (time.perf_counter() - begin))
            await _quiet()
            begin = time.perf_counter()
            await box.snapshots.restore("state")
            await box.execute("1 + 1")
            results.add("rollback", time.perf_counter() - begin)
        for _ in range(forks):
            await _quiet()
            begin = time.perf_counter()
            children = await box.fork(5)
            await asyncio.gather(*(child.execute("1 + 1") for child in children))
            results.add("fork_five", time.perf_counter() - begin)
            await asyncio.gather(*(child.close() for child in children))


async def _quiet() -> None:
    await asyncio.to_thread(wait_until_quiet)
