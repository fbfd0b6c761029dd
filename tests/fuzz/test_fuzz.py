"""The fuzzer in continuous integration: some seconds a target, the corpus, a fixed seed. `make fuzz` takes its time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import PLANTED, TARGETS

ROOT = Path(__file__).parent.parent.parent
SECONDS = 5


def fuzz(target: str, artifacts: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", target, "--artifacts", str(artifacts), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found(target: str) -> None:
    """An input that is found stays in build/fuzz: try it with ``python -m tests.fuzz TARGET --input FILE``."""
    ran = fuzz(target, ROOT / "build" / "fuzz", "--seconds", str(SECONDS))
    assert ran.returncode == 0, ran.stderr[-5000:]
    assert "stat::number_of_executed_units" in ran.stderr


@pytest.mark.parametrize("target", PLANTED)
def test_a_bug_is_found(target: str, tmp_path: Path) -> None:
    """One that was planted, by its target, and its input makes it show again."""
    ran = fuzz(target, tmp_path, "--seconds", "120", "--plant")
    assert ran.returncode != 0
    (found,) = tmp_path.glob(f"{target}-crash-*")
    assert fuzz(target, tmp_path, "--input", str(found), "--plant").returncode != 0
    assert fuzz(target, tmp_path, "--input", str(found)).returncode == 0, "without the bug it is harmless"
