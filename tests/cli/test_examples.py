"""The examples do what they say, in real VMs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.cli.command import ROOT, vm_kernel, write_notebook

EXAMPLES = ROOT / "examples"


def cell(notebook: Any, ident: str) -> Any:
    """The cell with that id."""
    (found,) = (entry for entry in notebook["cells"] if entry["id"] == ident)
    return found


def text(entry: dict[str, Any]) -> str:
    """The text that a cell has printed."""
    return "".join("".join(output.get("text", "")) for output in entry["outputs"])


async def execute(notebook: NotebookNode, manager: AsyncKernelManager) -> None:
    """Run a notebook in a kernel that goes on afterwards."""
    client = NotebookClient(notebook, km=manager, timeout=240)
    await client.async_execute()
    assert client.kc is not None
    client.kc.stop_channels()


def test_the_quick_start_runs_and_has_a_plot(kernelspec: str, tmp_path: Path) -> None:
    done = vm_kernel("run", "--output-dir", tmp_path, EXAMPLES / "quickstart.ipynb")
    assert done.returncode == 0, done.stderr
    notebook = json.loads((tmp_path / "quickstart.ipynb").read_text())
    assert "image/png" in cell(notebook, "plot")["outputs"][0]["data"]
    assert "uid 1000" in text(cell(notebook, "where"))
    assert "crosses 400 ppm in 2016" in text(cell(notebook, "forecast"))
    assert "text/html" in cell(notebook, "pool-status")["outputs"][0]["data"]


def test_the_quick_start_holds_the_data_that_is_shipped() -> None:
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    scope: dict[str, str] = {}
    exec("".join(cell(notebook, "data")["source"]), scope)
    assert scope["CSV"] == (EXAMPLES / "data/mauna_loa_co2.csv").read_text()


@pytest.mark.timeout(400)  # to delete all files of a VM takes long without KVM
async def test_after_untrusted_code_a_restart_brings_everything_back(kernelspec: str) -> None:
    notebook = nbformat.reads((EXAMPLES / "untrusted.ipynb").read_text(), as_version=4)
    first = nbformat.v4.new_notebook(cells=[cell(notebook, "before")])
    manager = AsyncKernelManager(kernel_name=kernelspec)
    await manager.start_kernel()
    try:
        await execute(notebook, manager)
        await manager.restart_kernel()
        await execute(first, manager)
    finally:
        await manager.shutdown_kernel(now=True)
    assert "thesis   : gone" in text(cell(notebook, "rm"))
    assert "unreachable" in text(cell(notebook, "network"))
    assert "left from earlier: nothing" in text(first.cells[0])


def test_the_ci_example_fails_when_the_notebook_does(kernelspec: str, tmp_path: Path) -> None:
    good = write_notebook(tmp_path / "good.ipynb", "assert 1 + 1 == 2")
    bad = write_notebook(tmp_path / "bad.ipynb", "assert 1 + 1 == 3")
    for notebook, status in ((good, 0), (bad, 1)):
        command = [sys.executable, str(EXAMPLES / "ci.py"), str(notebook)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == status, done.stderr
    assert "AssertionError" in done.stderr


def test_the_agent_example_judges_every_candidate(vm_home: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "agent.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    verdicts = {line.split()[0]: line.partition(" s  ")[2] for line in done.stdout.splitlines()}
    assert verdicts["good"] == "right"
    assert verdicts["wrong"] == "wrong: 328350"
    assert verdicts["broken"].startswith("SyntaxError: ")
    assert verdicts["endless"] == "did not end within 15 s"
    assert verdicts["hostile"] == "wrong: all is gone"


def test_the_fork_example_goes_four_ways_from_one_state(vm_home: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "forks.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=True)
    scores = {line[:15].strip(): line[15:].strip() for line in done.stdout.splitlines()}
    assert float(scores["parabola"]) < float(scores["line"])
    assert float(scores["last ten years"]) < 10
    assert scores["careless"] == "failed: NameError"
