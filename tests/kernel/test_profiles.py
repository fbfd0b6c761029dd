"""Several kernels on one machine, each with a profile of its own; a notebook keeps the one that it names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.cli.command import outputs, vm_kernel

MEMORY = "print(int(open('/proc/meminfo').readline().split()[1]) // 1024)"
KERNELS = {"vm-sandbox": "VM Sandbox", "vm-sandbox-small": "VM Sandbox (small)"}


@pytest.fixture(scope="module")
def installed(vm_home: Path) -> None:
    """A kernel for each profile of the configuration."""
    done = vm_kernel("install", "--user", "--all-profiles")
    assert done.returncode == 0, done.stderr


def jupyter(*arguments: str | Path) -> str:
    """What that command of Jupyter's printed."""
    command = [sys.executable, "-m", "jupyter", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=True).stdout


def test_jupyter_lists_them(installed: None) -> None:
    listed = json.loads(jupyter("kernelspec", "list", "--json"))["kernelspecs"]
    assert {name: listed[name]["spec"]["display_name"] for name in KERNELS} == KERNELS


@pytest.mark.timeout(400)  # the profile's golden snapshot may have to be built
def test_a_notebook_runs_in_the_profile_of_its_kernel_and_keeps_it(installed: None, tmp_path: Path) -> None:
    memory = {}
    for name in KERNELS:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (MEMORY, "%vm_info")])
        notebook.metadata["kernelspec"] = {"name": name, "display_name": KERNELS[name], "language": "python"}
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(notebook, path)
        jupyter("execute", "--inplace", path)
        printed, facts = outputs(path)
        memory[name] = int(printed.split()[-1])  # a line before it tells what the cell waited for
        assert f"{'256' if 'small' in name else '384'} MiB" in facts
        assert nbformat.read(path, 4).metadata["kernelspec"]["name"] == name
    assert 128 < memory["vm-sandbox-small"] <= 256 < memory["vm-sandbox"] <= 384
