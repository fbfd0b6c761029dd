"""The lab host of a test run: one, in a process of its own, from the end of the collection on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.image import PROJECT
from tests.lab.suite import RESULTS

_LAB = pytest.StashKey["Lab"]()


@dataclass
class Lab:
    """A lab host at work."""

    process: subprocess.Popen[bytes]
    log: Path

    def results(self) -> Path:
        """Wait until it has ended; the folder of what it brought out."""
        self.process.wait()
        assert (RESULTS / "status").exists(), f"the lab host brought nothing out; see {self.log}"
        return RESULTS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The lab's tests come last: until then it works beside the others."""
    items.sort(key=lambda item: "lab_host" in item.fixturenames if isinstance(item, pytest.Function) else False)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin."""
    wanted = any(isinstance(item, pytest.Function) and "lab_host" in item.fixturenames for item in session.items)
    if wanted and not session.config.option.collectonly:
        (PROJECT / "build").mkdir(exist_ok=True)
        log = PROJECT / "build" / "lab.log"
        with log.open("wb") as file:
            release = os.environ.get("VM_KERNEL_LAB_RELEASE", "bookworm")
            command = [sys.executable, "-m", "tests.lab", "--release", release, "--results", str(RESULTS)]
            # the lab does not outlive this process, however that ends
            command = ["setpriv", "--pdeathsig", "TERM", *command]
            process = subprocess.Popen(command, cwd=PROJECT, stdout=file, stderr=subprocess.STDOUT)
        session.config.stash[_LAB] = Lab(process, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Whoever stops early wants no lab host left."""
    if lab := session.config.stash.get(_LAB, None):
        lab.process.terminate()
        lab.process.wait()


@pytest.fixture(scope="session")
def lab_host(request: pytest.FixtureRequest) -> Lab:
    """The lab host of this run."""
    return request.config.stash[_LAB]
