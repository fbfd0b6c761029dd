"""What is measured: names, aims and samples. How samples are taken is in the other modules."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from tests.hostile.attacks import ATTACKS

#: sides of a comparison
OURS, STOCK = "vm-sandbox", "ipykernel"


@dataclass
class Series:
    """Samples of one quantity for one side."""

    values: list[float] = field(default_factory=list)

    def percentile(self, percent: int) -> float:
        """The sample below which ``percent`` of all samples are (nearest rank)."""
        ordered = sorted(self.values)
        return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]

    def summary(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return {
            "p50": round(statistics.median(self.values), 4),
            "p95": round(self.percentile(95), 4),
            "p99": round(self.percentile(99), 4),
            "samples": len(self.values),
        }


@dataclass
class Row:
    """One quantity. ``aim`` is for our median, or, if ``aim_is_ratio``, for ours / ipykernel's.

    specification: the target of the specification that this project started from, in words. percentile: which sample is
    compared with the aim. at_least: the aim is to be reached from below.
    """

    key: str
    title: str
    unit: str
    aim: float | None = None
    aim_is_ratio: bool = False
    specification: str = ""
    percentile: int = 50
    at_least: bool = False
    series: dict[str, Series] = field(default_factory=dict)

    def add(self, side: str, value: float) -> None:
        """Add a sample."""
        self.series.setdefault(side, Series()).values.append(value)

    @property
    def median(self) -> float | None:
        """Our median."""
        return statistics.median(self.series[OURS].values) if OURS in self.series else None

    @property
    def value(self) -> float | None:
        """What is compared with the aim, if that is no ratio."""
        return (
            self.median
            if self.percentile == 50 or OURS not in self.series
            else self.series[OURS].percentile(self.percentile)
        )

    @property
    def ratio(self) -> float | None:
        """Our median over ipykernel's."""
        if OURS not in self.series or STOCK not in self.series:
            return None
        return statistics.median(self.series[OURS].values) / statistics.median(self.series[STOCK].values)

    @property
    def met(self) -> bool | None:
        """Is the aim reached? None if there is no aim, or nothing was measured."""
        reached = self.ratio if self.aim_is_ratio else self.value
        if self.aim is None or reached is None:
            return None
        return reached >= self.aim if self.at_least else reached <= self.aim

    def summary(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return {
            "title": self.title,
            "unit": self.unit,
            **{side: series.summary() for side, series in self.series.items()},
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "aim": self.aim,
            "aim_is": "ratio" if self.aim_is_ratio else self.unit,
            "aim_for": f"p{self.percentile}, at {'least' if self.at_least else 'most'}",
            "specification": self.specification,
            "met": self.met,
        }


def _requests(key: str, title: str) -> list[Row]:
    """The rows of one kind of request; ``benchmarks.requests`` says what they are."""
    return [
        Row(f"{key}_whole", f"{title}, to its answer and idle", "ms"),
        Row(f"{key}_guest", "  of that: inside the guest alone", "ms"),
        Row(f"{key}_added", "  of that: added on the way", "ms", 1.5),
        Row(f"{key}_agent", "    by the agent and the stream", "ms"),
        Row(f"{key}_host", "    by the kernel process", "ms"),
        Row(f"{key}_relay", "  added on the way without a VM", "ms", 1.5),
    ]


def _neighbours() -> list[Row]:
    """What a session feels of a hostile one beside it."""
    title = "a neighbour's trivial cell, p95, beside a"
    attacks = [attack for attack in ATTACKS if not attack.as_root]
    return [Row(f"neighbour_{attack.key}", f"{title} {attack.name}", "x", 2.0) for attack in attacks]


class Results:
    """All rows, in the order in which they are shown."""

    def __init__(self) -> None:
        self.rows = {
            row.key: row
            for row in (
                Row("launch_to_info", "launch to the first kernel_info_reply", "ms", 0.7, aim_is_ratio=True),
                Row("launch_to_info_open", "the same, by a client that connects once the port is open", "ms"),
                Row("start_to_result", "start_kernel to the first cell's result", "ms", 1.0, aim_is_ratio=True),
                Row("start_to_ready", "start_kernel to wait_for_ready", "ms"),
                Row("ready_to_result", "start_kernel, wait_for_ready, the first cell's result", "ms"),
                Row("restart_to_info", "restart_kernel to the first kernel_info_reply", "ms", 0.7, aim_is_ratio=True),
                Row("restart_to_result", "restart_kernel to the first cell's result", "ms"),
                Row("trivial_cell", "trivial cell, by jupyter_client", "ms"),
                Row("stdout_10mb", "10 MB of stdout", "s"),
                Row("stdout_2mb", "2 MB of stdout", "s"),
                *_requests("cell", "trivial cell"),
                *_requests("completion", "completion"),
                *_requests("comm", "comm round trip"),
                Row("cells_in_sequence", "100 trivial cells, in sequence", "s"),
                Row("cells_pipelined", "100 trivial cells, all sent at once", "s"),
                Row("stdout_100mb", "100 MB of stdout", "s"),
                Row("stdout_guest", "  of that: inside the guest alone", "s"),
                Row("stdout_relay", "  the relay without a VM", "s", 2.0, aim_is_ratio=True),
                Row("check_small", "a guest's message, checked (stock: its JSON parsed): small", "µs"),
                Row("check_text", "  256 KiB of text", "µs"),
                Row("check_plot", "  200,000 numbers", "µs"),
                Row("policy_stream", "output policy (stock: trusted): a printed line", "µs"),
                Row("policy_table", "  a table of pandas, 60 x 20", "µs"),
                Row("policy_plot", "  a plot, 60 KB of PNG", "µs"),
                Row("policy_frame", "  1 MB of HTML and script, in a frame", "µs"),
                Row("acquire", "pool: acquire", "ms", 1.0, specification="< 100"),
                Row("acquire_p99", "  p99 of the same", "ms", 10.0, percentile=99),
                Row("acquire_ten", "  ten at once, all of them", "ms", 20.0, specification="< 200"),
                Row("acquire_fifty", "  fifty at once, all of them", "ms"),
                Row(
                    "lease_to_lease",
                    "pool: back to the golden state, lease to lease",
                    "ms",
                    20.0,
                    specification="< 1000",
                ),
                Row("clone_to_warm", "pool: clone to warm", "s", 0.35),
                Row("own_clone_to_warm", "  of one that shares no memory", "s"),
                Row("clone_variation", "  standard deviation of the same", "%", 20.0, specification="< 20"),
                Row("refill", "pool: from a lease to a full pool again", "s", 0.3, specification="< 1"),
                Row("workflow", "acquire, execute, release", "s", 0.2, specification="< 5"),
                Row("agents", "ten agents at once, five cells each", "s", 5.0, specification="< 30"),
                Row(
                    "per_minute", "executions a minute, a fresh VM each", "", 20.0, specification=">= 20", at_least=True
                ),
                Row(
                    "checkpoint_pause",
                    "checkpoint of 20 MB: the session stands still",
                    "ms",
                    60.0,
                    specification="< 2000",
                ),
                Row("checkpoint", "checkpoint of 20 MB: until it is saved", "ms"),
                Row("checkpoint_list", "checkpoints: list", "ms", 5.0, specification="< 100"),
                Row("rollback", "rollback to the first answer", "s", 0.4, specification="< 1"),
                Row("fork_five", "fork into five, all answering", "s", 2.0),
                Row("files_put", "files: 20 MB into the VM", "MB/s", at_least=True),
                Row("files_get", "files: 20 MB out of the VM", "MB/s", at_least=True),
                *_neighbours(),
                Row("egress_request", "egress: a connection and an empty answer", "ms"),
                Row("egress_stream", "egress: 20 MB from a server on this machine", "MB/s", at_least=True),
                Row("cold_boot", "cold boot to warm", "s"),
                Row("golden_build", "golden snapshot: build", "s"),
                Row("golden_load", "golden snapshot: load", "s"),
                Row("unique_memory", "memory of its own, an idle VM (10 VMs)", "MiB", 45.0),
                Row("session_memory", "memory of its own, a VM of 50 sessions that have run a cell", "MiB"),
            )
        }

    def aim_at_kvm(self) -> None:
        """The aims that hold where VMs run under KVM: ratios to stock ipykernel on the same machine."""
        for key, ratio in (("cell_whole", 1.5), ("start_to_result", 1.0), ("restart_to_info", 0.7)):
            self.rows[key].aim, self.rows[key].aim_is_ratio = ratio, True

    def add(self, key: str, value: float, side: str = OURS) -> None:
        """Add a sample to a row."""
        self.rows[key].add(side, value)
