"""The VM dies: Lab says so, and the kernel is there again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.lab import Lab
from tests.conftest import qemus


@pytest.mark.parametrize("running", [False, True], ids=["idle", "in_a_cell"])
def test_a_killed_vm_is_announced_and_replaced(lab: Lab, vm_home: Path, running: bool) -> None:
    notebook = lab.notebook(
        "%vm_info --json", "x = 1\nprint('begun')\nimport time; time.sleep(1000)", "print('again')\nx"
    )
    first = notebook.vm(0)
    if running:
        notebook.start(1)
        expect(notebook.output(1)).to_contain_text("begun")
    kill(vm_home, first)
    dialog = lab.page.locator(".jp-Dialog")
    expect(dialog).to_contain_text("Kernel Restarting")
    expect(dialog).to_contain_text("notebook.ipynb appears to have died. It will restart automatically.")
    lab.shot("kernel-died" + "-in-a-cell" * running)
    notebook.accept()
    notebook.until_status("idle")
    if running:
        expect(notebook.output(1)).to_contain_text("its QEMU process was killed by SIGKILL")
    notebook.run(2)
    expect(notebook.output(2)).to_contain_text("again")
    assert notebook.outputs(2)[-1]["ename"] == "NameError", "nothing of the old VM is left"
    assert notebook.vm(0) != first


def kill(home: Path, vm: str) -> None:
    """End the QEMU of that VM."""
    (process,) = (found for found in qemus(home) if any(f"guest={vm}," in word for word in found.info["cmdline"]))
    os.kill(process.pid, signal.SIGKILL)
