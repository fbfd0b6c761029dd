"""A notebook that goes back to where it was, widgets included."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.lab import Lab

CELLS = (
    "import ipywidgets, pathlib\npathlib.Path('data.txt').write_text('clean')\n"
    "slider = ipywidgets.IntSlider(3, max=10)\nslider",
    "%checkpoint clean",
    "slider.value = 8\npathlib.Path('data.txt').write_text('spoilt')",
    "%checkpoints",
    "%rollback clean",
    "slider.value, pathlib.Path('data.txt').read_text()",
)


def test_a_session_goes_back_to_its_checkpoint(lab: Lab) -> None:
    notebook = lab.notebook(*CELLS)
    for index in range(6):
        notebook.run(index)
    expect(notebook.output(1)).to_contain_text("session paused for")
    expect(notebook.output(3).locator("table")).to_contain_text("clean")
    expect(notebook.output(4)).to_contain_text("Back at checkpoint 'clean'")
    assert notebook.outputs(5)[0]["data"]["text/plain"] == "(3, 'clean')"
    # the widget that the browser still shows is that of the VM that came back
    handle = notebook.output(0).locator(".noUi-handle")
    handle.focus()
    handle.press("ArrowLeft")
    expect(notebook.output(0).locator(".widget-readout")).to_have_text("7")
    notebook.until_status("idle")
    notebook.run(5)
    assert notebook.outputs(5)[0]["data"]["text/plain"] == "(7, 'clean')"
    lab.shot("checkpoints")
