"""The lab host of a test run: one, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.image import PROJECT
from tests.lab.suite import RESULTS

LOG = PROJECT / "build" / "lab.log"
FIGURES = "test_figures.py"


@dataclass(frozen=True)
class Lab:
    """A lab host that has ended. status: that of what it did. results: the folder of what it brought out."""

    status: int
    results: Path
    log: Path


@pytest.fixture(scope="session")
def lab_host(request: pytest.FixtureRequest) -> Lab:
    """Run what it is for. That takes many minutes, and some more if a test of this run wants figures."""
    LOG.parent.mkdir(exist_ok=True)
    shutil.rmtree(RESULTS, ignore_errors=True)
    release = os.environ.get("VM_KERNEL_LAB_RELEASE", "bookworm")
    command = [sys.executable, "-m", "tests.lab", "--release", release, "--results", str(RESULTS)]
    if any(item.path.name == FIGURES for item in request.session.items):
        command.append("--figures")
    with LOG.open("wb") as log:
        # the lab does not outlive this process, however that ends
        command = ["setpriv", "--pdeathsig", "TERM", *command]
        lab = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT)
    try:
        status = lab.wait()
    finally:  # who stops early wants no lab host left, nor its files
        lab.terminate()
        lab.wait()
    assert (RESULTS / "status").exists(), f"the lab host brought nothing out; see {LOG}"
    return Lab(status, RESULTS, LOG)
