"""The charts of ``%pool_status`` in JupyterLab: shown in place, and readable in a light and in a dark theme."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, expect

from tests.browser.lab import Lab
from tests.conftest import wait_until
from vm_kernel.pool.client import PoolConnection

_CHANGE_THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
_TEXT_COLOUR = "svg => getComputedStyle(svg.querySelector('text')).fill"


def test_charts_are_shown_in_any_theme(lab: Lab, pool: PoolConnection) -> None:
    notebook = lab.notebook("sum(range(1000))", "%pool_status")
    notebook.run(0)
    wait_until(lambda: pool_history()[-1:] > [0], 60.0, "the session is in the last sample")
    notebook.run(1)
    charts = notebook.output(1).locator("svg[role=img]")
    expect(charts).to_have_count(1)
    expect(charts).to_have_attribute("aria-label", re.compile("^The pool in the last .*leased [1-9]"))
    box = charts.bounding_box()
    assert box is not None
    assert box["width"] > 500
    expect(notebook.output(1)).to_contain_text("Memory VMs have for themselves")
    expect(notebook.output(1).locator("table").first).to_be_visible()
    assert brightness(charts) < 128, "dark on light"
    lab.shot("pool-status-light")
    lab.page.evaluate(_CHANGE_THEME, "JupyterLab Dark")
    wait_until(lambda: brightness(charts) > 128, 60.0, "light on dark")
    expect(lab.page.locator("#jupyterlab-splash")).to_have_count(0)
    lab.shot("pool-status-dark")
    lab.page.evaluate(_CHANGE_THEME, "JupyterLab Light")
    wait_until(lambda: brightness(charts) < 128, 60.0, "as before")


def pool_history() -> list[int]:
    """How many VMs were leased, over the last minutes."""
    connection = PoolConnection.open()
    try:
        leased: list[int] = connection.status(history=True)["history"]["leased"]
        return leased
    finally:
        connection.close()


def brightness(charts: Locator) -> float:
    """Of the text in the charts, from 0 to 255."""
    numbers = re.findall(r"[\d.]+", str(charts.evaluate(_TEXT_COLOUR)))
    return sum(map(float, numbers[:3])) / 3
