"""Sessions that burn CPU, memory or output are flagged, everywhere where somebody may look; and the samples of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from traitlets.config import Config

from tests.conftest import CONFIG, eventually, stop_service, wait_until, write_config
from vm_kernel import Sandbox, paths
from vm_kernel.config import PoolConfig
from vm_kernel.pool.client import PoolConnection
from vm_kernel.pool.health import judge
from vm_kernel.pool.history import LENGTH, History, Sample
from vm_kernel.pool.peer import Peer
from vm_kernel.pool.session import Point, Session
from vm_kernel.pool.state import PooledVM
from vm_kernel.vm.usage import Usage, usage_of

LIMITS = """
c.PoolConfig.flag_window_s = 6.0
c.PoolConfig.flag_cpu_s = 1.5
c.PoolConfig.flag_memory_share = 0.35
c.PoolConfig.flag_output_mib_per_min = 2.0
"""


@pytest.fixture(scope="module", autouse=True)
def limits(vm_home: Path) -> Iterator[None]:
    """A service with low limits."""
    stop_service()
    write_config(CONFIG + LIMITS)
    yield
    stop_service()
    write_config(CONFIG)


def flags(vm: str) -> set[str]:
    with closing(PoolConnection.open()) as connection:
        row = next(row for row in connection.status()["vms"] if row["name"] == vm)
    return {flag["kind"] for flag in row["flags"]}


def flag_events(vm: str) -> list[tuple[str, str]]:
    lines = map(json.loads, paths.audit_log().read_text().splitlines())
    return [(line["flag"], line["state"]) for line in lines if line["event"] == "flag" and line["vm"] == vm]


async def test_cpu_is_flagged_while_it_is_burnt(vm_home: Path) -> None:
    async with Sandbox() as box:
        name = _name(box)
        await box.execute("1")
        assert flags(name) == set()
        burning = asyncio.ensure_future(box.execute("while True: pass"))
        await eventually(lambda: flags(name) == {"cpu"}, 60.0, "the session is flagged")
        assert 'vm_kernel_flagged_vms{flag="cpu",profile="default"} 1.0' in _metrics()
        burning.cancel()
        await eventually(lambda: flags(name) == set(), 60.0, "the flag is taken back")
        assert 'vm_kernel_flagged_vms{flag="cpu",profile="default"} 0.0' in _metrics()
        assert (await box.execute("'still here'")).ok, "flags have no other effect"
    assert flag_events(name) == [("cpu", "raised"), ("cpu", "cleared")]
    logged = [line for line in paths.log_file().read_text().splitlines() if '"event": "flag"' in line and name in line]
    assert len(logged) == 2


async def test_memory_and_output_are_flagged(vm_home: Path) -> None:
    async with Sandbox() as box:
        name = _name(box)
        await box.execute("kept = bytearray(b'x') * (100 << 20)")
        await eventually(lambda: "memory" in flags(name), 60.0, "its memory is flagged")
        await box.execute("for _ in range(60): print('x' * 50_000)")
        await eventually(lambda: "output" in flags(name), 60.0, "its output is flagged")
        with closing(PoolConnection.open()) as connection:
            row = next(row for row in connection.status()["vms"] if row["name"] == name)
        texts = {flag["kind"]: flag["text"] for flag in row["flags"]}
        assert texts["memory"].endswith("MiB of memory of its own (limit 134.4 MiB)")
        assert "of output in the last minute (limit 2 MiB)" in texts["output"]
        assert row["executions"] == 2
        assert row["output_bytes"] > 2 << 20
    await eventually(lambda: 'flag="memory",profile="default"} 0.0' in _metrics(), 60.0, "it has gone with its session")


# ---- the arithmetic


def config(**settings: float) -> PoolConfig:
    off = {"flag_cpu_s": 0.0, "flag_memory_share": 0.0, "flag_output_mib_per_min": 0.0}
    return PoolConfig(config=Config({"PoolConfig": off | settings}))


async def test_a_flag_stays_until_the_figure_is_well_below_its_limit() -> None:
    session = Session(PooledVM("vm-1", "default"), Peer(1, 1), "k")

    def look(mib: float, **settings: float) -> tuple[list[str], list[str]]:
        session.memory = int(mib * (1 << 20))
        session.mark(60.0)
        raised, cleared = judge(session, 100, config(**settings))
        return [flag.kind for flag in raised], [flag.kind for flag in cleared]

    assert look(1000) == ([], []), "0 is off"
    half = {"flag_memory_share": 0.5}
    assert look(49.9, **half) == ([], [])
    assert look(50, **half) == (["memory"], [])
    since = session.flags["memory"].since
    assert look(46, **half) == ([], [])
    assert (session.flags["memory"].value, session.flags["memory"].since) == (46, since)
    assert look(44, **half) == ([], ["memory"])


async def test_cpu_and_output_are_counted_within_their_window() -> None:
    session = Session(PooledVM("vm-1", "default"), Peer(1, 1), "k")
    now = session.begun
    session.trail.extend(Point(now - ago, 100.0 - ago, int(100 - ago) << 20) for ago in (90, 70, 50, 30, 10, 0))
    raised, _ = judge(session, 100, config(flag_window_s=75.0, flag_cpu_s=60.0, flag_output_mib_per_min=50.0))
    assert {flag.kind: flag.value for flag in raised} == {"cpu": 70.0, "output": 50.0}
    session.mark(60.0)
    assert len(session.trail) == 6, "one point before the window is kept, to count from"


async def test_the_cpu_time_of_a_session_goes_on_when_its_vm_is_replaced() -> None:
    session = Session(PooledVM("vm-1", "default"), Peer(1, 1), "k")
    for pid, cpu_s, memory in ((1, 5.0, 10), (1, 7.0, 30), (2, 1.0, 5), (2, 1.5, 6)):
        session.used(pid, Usage(cpu_s, memory))
    assert (session.cpu_s, session.memory, session.peak_memory) == (3.5, 6, 30)


def test_usage_is_read_of_processes_that_are_there() -> None:
    usage = usage_of(os.getpid())
    assert usage is not None
    assert usage.cpu_s > 0
    assert usage.memory > 1 << 20
    assert usage_of(1 << 22) is None


# ---- the samples


def test_the_last_minutes_come_with_the_status_if_asked_for(pool: PoolConnection) -> None:
    assert "history" not in pool.status()
    with closing(PoolConnection.open()) as connection:
        connection.acquire()
        wait_until(lambda: 1 in _history(pool)["leased"], 60.0, "the lease is in a sample")
    found = _history(pool)
    columns = [found[name] for name in Sample._fields]
    assert {len(column) for column in columns} == {len(found["warm"])}
    assert max(value for value in found["acquire_ms"] if value is not None) > 0
    assert min(found["host_mib"]) > 0
    assert max(found["own_mib"]) > 1


def test_the_ring_forgets_what_is_old() -> None:
    history = History()
    assert history.columns()["warm"] == []
    for number in range(LENGTH + 5):
        history.add(Sample(number, 0, 0, 0, 0, None))
    assert history.columns()["warm"] == list(range(5, LENGTH + 5))


def _history(pool: PoolConnection) -> dict[str, Any]:
    found: dict[str, Any] = pool.status(history=True)["history"]
    return found


def _metrics() -> str:
    with closing(PoolConnection.open()) as connection:
        return connection.metrics()


def _name(box: Sandbox) -> str:
    assert box.vm is not None
    return box.vm.name
