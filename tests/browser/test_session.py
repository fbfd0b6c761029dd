"""A session as the README shows it: the picture there is this test's."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.lab import Lab

WAVE = """\
import ipywidgets, numpy as np, matplotlib.pyplot as plt

@ipywidgets.interact(frequency=(1, 12), damping=(0.0, 1.0))
def wave(frequency=3, damping=0.2):
    x = np.linspace(0, 10, 500)
    plt.figure(figsize=(7, 2.1))
    plt.plot(x, np.sin(frequency * x) * np.exp(-damping * x))
    plt.show()"""


def test_sliders_redraw_a_plot_beside_the_pools_status(lab: Lab) -> None:
    lab.page.set_viewport_size({"width": 1100, "height": 1290})
    notebook = lab.notebook("import platform, getpass\nplatform.node(), getpass.getuser()", WAVE, "%pool_status")
    lab.page.keyboard.press("Control+b")  # room: without the file browser
    for index in range(3):
        notebook.run(index)
    plot = notebook.output(1).locator("img")
    expect(plot).to_have_js_property("complete", True)
    first = str(plot.get_attribute("src"))
    sliders = notebook.output(1).locator(".noUi-handle")
    expect(sliders).to_have_count(2)
    sliders.first.focus()
    sliders.first.press("ArrowRight")
    expect(notebook.output(1).locator(".widget-readout").first).to_have_text("4")
    expect(plot).not_to_have_attribute("src", first)
    assert plot.evaluate("image => image.naturalWidth") > 400
    expect(notebook.output(2)).to_contain_text("this session for")
    notebook.until_status("idle")
    notebook.panel.locator(".jp-WindowedPanel-outer").evaluate("node => node.scrollTo(0, 0)")
    lab.shot("session")
