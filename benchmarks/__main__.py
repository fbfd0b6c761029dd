"""``make bench``: all in one run, a table on the terminal and ``benchmarks/latest.json``. Some 15 minutes.

``--lab FILE`` is for the lab host (tests/lab), where VMs run under KVM, but everything, stock ipykernel included, some
twenty times slower than on hardware: fewer samples, of what KVM and vsock change, and their ratios go to FILE.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import (
    checkpoints,
    checks,
    crowds,
    egress,
    environment,
    files,
    hostile,
    pool,
    report,
    requests,
    sessions,
)
from benchmarks.samples import Results

Step = tuple[str, Callable[[], None]]


def main() -> int:
    """Measure and report. The exit status does not depend on what was reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples, to see that it works; nothing is written")
    parser.add_argument("--lab", type=Path, metavar="FILE", help="what the lab host is for; the figures go to FILE")
    args = parser.parse_args()
    if args.lab:
        return _measure(_lab_steps, args.lab, keep_golden=True)
    return _measure(partial(_steps, quick=args.quick), None if args.quick else report.LATEST, keep_golden=False)


def _measure(steps: Callable[[Results], list[Step]], target: Path | None, *, keep_golden: bool) -> int:
    console, results = Console(highlight=False), Results()
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    status = None
    with environment.place(keep_golden), suppress(KeyboardInterrupt):  # who has seen enough gets what there is
        for title, measure in steps(results):
            with console.status(f"measuring {title}"):
                measure()
        status = environment.status()
    report.show(results, console)
    if target is not None and status is not None:
        report.write(results, status, target)
        console.print(f"Wrote {target}")
    return 0


def _steps(results: Results, quick: bool) -> list[Step]:
    return [
        ("golden snapshots", lambda: pool.measure_golden(results, 1 if quick else 2)),
        ("leases", lambda: pool.measure_leases(results, 4 if quick else 102)),
        ("clones that share no memory", lambda: pool.measure_own_memory(results, 2 if quick else 10)),
        ("from lease to lease", lambda: crowds.measure_turns(results, 2 if quick else 11)),
        ("checkpoints", lambda: checkpoints.measure_checkpoints(results, 2 if quick else 11)),
        ("agents", lambda: crowds.measure_agents(results, 1 if quick else 3)),
        ("many leases at once", lambda: crowds.measure_crowds(results, 1 if quick else 2)),
        ("starts and restarts", lambda: sessions.measure_starts(results, 1 if quick else 11)),
        ("cells", lambda: sessions.measure_cells(results, 2 if quick else 10, 20)),
        ("requests", lambda: requests.measure_requests(results, 1 if quick else 5, 10 if quick else 30)),
        ("the relay without a VM", lambda: requests.measure_relay(results, 1 if quick else 5, 10 if quick else 100)),
        ("checks of a guest's messages", lambda: checks.measure_checks(results, 2 if quick else 21)),
        ("files", lambda: files.measure_files(results, 2 if quick else 10)),
        ("hostile neighbours", lambda: hostile.measure_neighbours(results, 1 if quick else 3)),
        ("egress", lambda: egress.measure_egress(results, 2 if quick else 10)),
        ("much output", lambda: requests.measure_stdout(results, 1 if quick else 2)),
        ("memory", lambda: pool.measure_memory(results)),
    ]


def _lab_steps(results: Results) -> list[Step]:
    results.aim_at_kvm()
    return [
        ("leases", lambda: pool.measure_leases(results, 4)),
        ("checkpoints", lambda: checkpoints.measure_checkpoints(results, 2, forks=0)),
        ("starts and restarts", lambda: sessions.measure_starts(results, 2, whole=False, warm_up=0)),
        ("much output", lambda: sessions.measure_cells(results, 0, 0, prints=1, megabytes=2)),
        ("requests", lambda: requests.measure_requests(results, 2, 10, names=("cell", "completion"), hundred=False)),
    ]


if __name__ == "__main__":
    sys.exit(main())
