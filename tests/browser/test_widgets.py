"""Widgets: what a person moves reaches the VM, and what its code makes of that comes back."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.lab import Lab

SLIDER = """\
import ipywidgets
from IPython.display import display
slider, out = ipywidgets.IntSlider(value=3, max=10), ipywidgets.Output()
def moved(change):
    out.clear_output()
    with out:
        print('square', change['new'] ** 2)
slider.observe(moved, 'value')
display(slider, out)"""


def test_a_slider_moves_and_its_callback_changes_the_output(lab: Lab) -> None:
    notebook = lab.notebook(SLIDER, "slider.value", "slider.value = 9")
    notebook.run(0)
    shown = notebook.output(0)
    handle = shown.locator(".noUi-handle")
    expect(shown.locator(".widget-readout")).to_have_text("3")
    handle.focus()
    for _ in range(4):
        handle.press("ArrowRight")
    expect(shown.locator(".widget-readout")).to_have_text("7")
    expect(shown).to_contain_text("square 49")
    notebook.run(1)
    expect(notebook.output(1)).to_have_text("[2]:7")
    notebook.run(2)
    expect(shown.locator(".widget-readout")).to_have_text("9")
    expect(shown).to_contain_text("square 81")
    expect(shown).not_to_contain_text("square 49")
