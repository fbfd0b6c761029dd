"""Shows the results as a table and writes them as JSON."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.samples import OURS, STOCK, Results, Row
from vm_kernel import __version__

LATEST = Path(__file__).with_name("latest.json")


def show(results: Results, console: Console) -> None:
    """Print all rows; lower is better everywhere."""
    table = Table(title="Medians (p95); lower is better, but for an aim with ≥", title_justify="left")
    for column in ("", "VM Sandbox", "stock ipykernel", "ratio", "aim", "", "specification"):
        table.add_column(column, justify="left" if column == "" else "right")
    for row in results.rows.values():
        table.add_row(
            f"{row.title}, {row.unit}" if row.unit else row.title,
            _cell(row, OURS),
            _cell(row, STOCK),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            ""
            if row.aim is None
            else f"{'ratio ' if row.aim_is_ratio else ''}{'≥' if row.at_least else '≤'} {row.aim:g}",
            {None: "", True: "[green]met", False: "[red]missed"}[row.met],
            row.specification,
        )
    console.print(table)


def write(results: Results, status: dict[str, Any], target: Path) -> None:
    """Write them to ``target``. ``status`` is the pool service's: it knows accelerator, transport and versions."""
    report = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": platform.freedesktop_os_release()["PRETTY_NAME"],
            "kernel": platform.release(),
            "load_average": os.getloadavg(),
        },
        "accelerator": status["accelerator"],
        "transport": status["transport"],
        "versions": {
            "python": platform.python_version(),
            "qemu": status["qemu_version"],
            "libvirt": status["libvirt_version"],
            "vm-kernel": __version__,
            **{name: version(name) for name in ("ipykernel", "jupyter-client", "pyzmq")},
        },
        "results": {key: row.summary() for key, row in results.rows.items() if row.series},
    }
    target.write_text(json.dumps(report, indent=2) + "\n")


def _cell(row: Row, side: str) -> str:
    if side not in row.series:
        return ""
    facts = row.series[side].summary()
    digits = 0 if facts["p50"] >= 100 else 1 if facts["p50"] >= 10 else 2
    return f"{facts['p50']:.{digits}f} ({facts['p95']:.{digits}f})"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
