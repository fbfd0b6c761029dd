"""A new kernel, which is a new VM."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.lab import TIMEOUT_S, Lab, Notebook, vm_name
from tests.conftest import wait_until

CELLS = (
    "%vm_info --json",
    "n = 0\nfor n in range(200): print('line', n)",
    "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
    "from IPython.display import HTML\nHTML(f'<i>{n}</i>')",
    "import ipywidgets\nipywidgets.IntSlider(value=n, max=500)",
    "n += 1\nn",
)
LINES = "".join(f"line {n}\n" for n in range(200))


def test_restart_and_run_all_keeps_every_output(lab: Lab) -> None:
    notebook = lab.notebook(*CELLS)
    vms: set[str] = set()
    for _ in range(3):
        notebook.menu("Kernel", "Restart Kernel and Run All Cells…")
        notebook.accept()
        wait_until(lambda: anew(notebook, vms), TIMEOUT_S, "all cells have run, in a new VM")
        notebook.until_status("idle")
        vms.add(vm_name(notebook.outputs(0)))
        assert "".join(output["text"] for output in notebook.outputs(1)) == LINES
        assert "image/png" in notebook.outputs(2)[0]["data"]
        expect(notebook.output(3).locator("i")).to_have_text("199")
        expect(notebook.output(4).locator(".jupyter-widgets.widget-slider .widget-readout")).to_have_text("199")
        assert notebook.outputs(5)[0]["data"]["text/plain"] == "200", "the variable is a new one"


def anew(notebook: Notebook, vms: set[str]) -> bool:
    """True if all cells have run, and not in one of these VMs."""
    if notebook.prompts() != [f"[{n}]:" for n in range(1, 7)]:
        return False
    told = notebook.outputs(0)
    return bool(told) and vm_name(told) not in vms
