"""Measures what a session feels of a hostile one beside it: its trivial cells, quiet and during each attack.

The attacks are those of the tests that an ordinary user of the guest can make. One row an attack: p95 over p95 when the
pool is quiet.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from pathlib import Path

from benchmarks import environment
from benchmarks.samples import OURS, Results
from benchmarks.sessions import kernel
from tests.hostile.attacks import ATTACKS, Attack
from tests.hostile.neighbour import Neighbour, neighbour, percentile

QUIET_CELLS = 100


def measure_neighbours(results: Results, rounds: int) -> None:
    """Each attack in a VM of its own, ``rounds`` times, one neighbour for all of them."""
    attacks = [attack for attack in ATTACKS if not attack.as_root]
    with (
        kernel(OURS) as (manager, _),
        tempfile.TemporaryDirectory(prefix="vmk-bench-") as folder,
        neighbour(manager.connection_file, Path(folder, "neighbour")) as beside,
    ):
        quiet = _quiet(beside)
        for attack in attacks:
            felt = [ms for _ in range(rounds) for ms in _during(attack, beside)]
            results.add(f"neighbour_{attack.key}", percentile(felt, 95) / quiet)


def _quiet(beside: Neighbour) -> float:
    environment.wait_until_quiet()
    begin = time.monotonic()
    while len(found := beside.between(begin, time.monotonic())) < QUIET_CELLS:
        time.sleep(0.1)
    return percentile(found, 95)


def _during(attack: Attack, beside: Neighbour) -> list[float]:
    """Milliseconds of the neighbour's cells while the attack goes on."""
    environment.wait_until_quiet()
    with kernel(OURS) as (_, client):
        client.wait_for_ready(timeout=60)
        environment.wait_until_quiet()
        begin = time.monotonic()
        with suppress(TimeoutError, RuntimeError):  # the session may end of it
            client.execute_interactive(attack.cell, timeout=30, output_hook=lambda _: None)
        time.sleep(0.2)  # the cell that was under way
        return beside.between(begin, time.monotonic())
