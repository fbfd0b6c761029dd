"""What a lab host does by default: tests, its own and those that say most about KVM and vsock, then figures if asked.

Each outcome leaves the lab at once, over its second serial port: a lab host that crashes is booted again, and goes on
with what has not passed yet (see ``host``). And a test that fails is repeated, because the emulated SVM breaks a VM
now and then: its processor spins in the guest's kernel, or the guest ends. ``test_lab`` says how often that may be.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.lab.image import PROJECT

RESULTS = PROJECT / "build" / "lab"
CHOSEN = (
    "tests/lab/inside/test_real_path.py",
    "tests/lab/inside/test_vsock.py",
    "tests/lab/inside/test_scope.py",
    "tests/test_sessions.py::test_a_file_of_one_session_is_not_in_the_next",
    "tests/test_sessions.py::test_the_guest_has_no_network_and_none_of_the_hosts_files",
    "tests/test_kills.py::test_killing_the_pool_service_leaves_nothing_after_the_next_start",
    "tests/sandbox/test_snapshots.py::test_forks_go_on_from_the_same_state_and_are_unlike_each_other",
    "tests/sandbox/test_files.py::test_a_tree_goes_in_and_results_come_out",
    "tests/sandbox/test_files.py::test_files_go_on_after_a_restore_and_in_forks",
    "tests/kernel/test_execution.py::test_rich_display",
    "tests/kernel/test_execution.py::test_input_goes_to_the_client_whose_cell_asks",
    "tests/kernel/test_checkpoints.py::test_a_rollback_brings_back_variables_files_and_processes",
    "tests/lab/inside/test_causes.py",  # takes KVM and vsock away, so it comes last
)
#: seconds are for a test's own part: a golden snapshot that has to be built first takes two minutes, or more
_OPTIONS = (
    *("-v", "-s", "--durations=20", "--timeout=150", "-o", "timeout_func_only=true", "--reruns=2"),
    *("--report-log=/dev/ttyS1", "--junitxml=/results/junit.xml"),
)
_FIGURES = "python -m benchmarks --lab /results/benchmarks.json"
_NOTHING_LEFT = 5  # of pytest's exit statuses


@dataclass
class Outcome:
    """Of one test. passed: in the end. repeated: how often it failed before."""

    passed: bool
    repeated: int
    said: str = ""


def command(reports: Path, *, figures: bool) -> list[str]:
    """What the lab host is to do, given the reports of earlier attempts. Its exit status: of the tests, or figures."""
    passed = [f"--deselect={name}" for name, outcome in outcomes(reports).items() if outcome.passed]
    tests = shlex.join(["python", "-m", "pytest", *CHOSEN, *_OPTIONS, *passed])
    steps = [tests, "status=$?", f"[ $status = {_NOTHING_LEFT} ] && status=0"]
    if figures:
        steps.append(f"{_FIGURES} || {_FIGURES} || exit 2")
    return ["bash", "-c", "; ".join([*steps, "exit $status"])]


def outcomes(reports: Path) -> dict[str, Outcome]:
    """By test: what pytest-reportlog's lines say, of all attempts. A test that did not end is not in it."""
    ended: dict[str, Outcome] = {}
    begun: dict[str, Outcome] = {}
    for line in reports.read_text(errors="replace").splitlines():
        try:
            report = json.loads(line)
        except ValueError:  # cut off by a crash
            continue
        if report.get("$report_type") != "TestReport":
            continue
        name = report["nodeid"]
        if report["when"] == "setup":
            begun[name] = Outcome(True, begun[name].repeated if name in begun else 0)
        outcome = begun.setdefault(name, Outcome(True, 0))
        if report["outcome"] != "passed":
            outcome.passed, outcome.said = False, json.dumps(report["longrepr"])[-1000:]
            outcome.repeated += report["outcome"] == "rerun"
        if report["when"] == "teardown":
            ended[name] = outcome
    return ended
