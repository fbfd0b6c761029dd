"""What a lab host does by default: tests, its own and those that say most about KVM and vsock, then figures."""

from __future__ import annotations

import shlex

from tests.lab.image import PROJECT

RESULTS = PROJECT / "build" / "lab"
CHOSEN = (
    "tests/lab/inside/test_real_path.py",
    "tests/lab/inside/test_vsock.py",
    "tests/test_sessions.py",
    "tests/test_kills.py",
    "tests/pool/test_lease.py",
    "tests/sandbox/test_snapshots.py",
    "tests/sandbox/test_files.py::test_a_tree_goes_in_and_results_come_out",
    "tests/sandbox/test_files.py::test_files_go_on_after_a_restore_and_in_forks",
    "tests/kernel/test_execution.py::test_rich_display",
    "tests/kernel/test_execution.py::test_completion_knows_types",
    "tests/kernel/test_execution.py::test_input_goes_to_the_client_whose_cell_asks",
    "tests/kernel/test_checkpoints.py::test_a_rollback_brings_back_variables_files_and_processes",
    "tests/lab/inside/test_causes.py",  # takes KVM and vsock away, so it comes last
)
_TESTS = (
    "python",
    "-m",
    "pytest",
    *CHOSEN,
    "-v",
    "-s",
    "--timeout=300",
    "--durations=20",
    "--junitxml=/results/junit.xml",
)
_FIGURES = ("python", "-m", "benchmarks", "--lab", "/results/benchmarks.json")
#: the exit status is that of the tests, or else that of the figures
COMMAND = ["bash", "-c", f"{shlex.join(_TESTS)}; status=$?; {shlex.join(_FIGURES)} || exit 2; exit $status"]
