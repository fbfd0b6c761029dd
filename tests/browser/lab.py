"""A person in JupyterLab, opens a notebook, runs cells, reads what is shown; waits for conditions, up to a minute."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from playwright.sync_api import Locator, Page, expect

from tests.clients.notebooks import write
from tests.conftest import wait_until
from tests.lab_server import LabServer
from vm_kernel.kernel.spec import KERNEL_NAME

TIMEOUT_S = 60.0
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"

#: the notebook in front, as an object of Lab's: what the page shows can be held against its model
_CURRENT = "window.jupyterapp.shell.currentWidget"
_KERNEL_STATUS = f"() => {_CURRENT}?.sessionContext?.session?.kernel?.status"
#: requests that Lab has sent and that are not done
_PENDING = f"() => {_CURRENT}.sessionContext.session.kernel._futures?.size ?? 0"
_OUTPUTS = f"n => {_CURRENT}.content.widgets[n].model.outputs.toJSON()"


class Lab:
    """One browser window."""

    def __init__(self, page: Page, server: LabServer) -> None:
        self.page = page
        self.server = server

    def launcher(self) -> None:
        """Open Lab with nothing but its launcher."""
        self._visit("lab")
        self.page.locator(".jp-Launcher-body").wait_for()

    def notebook(self, *cells: str | NotebookNode, name: str = "notebook", kernel: str = KERNEL_NAME) -> Notebook:
        """Open a notebook that was saved with that kernel, and wait until the kernel is idle."""
        write(self.server.root / f"{name}.ipynb", *cells, kernel=kernel)
        self._visit(f"lab/tree/{name}.ipynb")
        return self.current()

    def current(self) -> Notebook:
        """The notebook in front, once its kernel is idle and has answered all that Lab asks it at first.

        Lab takes the "idle" of any of these requests for the kernel's, also when it comes after a cell's "busy".
        """
        self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").first.wait_for()
        notebook = Notebook(self)
        notebook.until_status("idle")
        wait_until(lambda: self.page.evaluate(_PENDING) == 0, TIMEOUT_S, "the kernel has answered")
        return notebook

    def shot(self, name: str) -> Path:
        """Keep what the window shows now."""
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def _visit(self, place: str) -> None:
        # reset: no layout is kept from the test before
        self.page.goto(f"{self.server.url}{place}?token={self.server.token}&reset")


class Notebook:
    """The notebook in front. Cells are counted from 0."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.page = lab.page
        self.panel = lab.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def cell(self, index: int) -> Locator:
        """A cell with its outputs."""
        return self.panel.locator(".jp-Cell").nth(index)

    def output(self, index: int) -> Locator:
        """All that a cell has put out, as it is shown."""
        return self.cell(index).locator(".jp-Cell-outputArea")

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """The same as it would be saved."""
        found: list[dict[str, Any]] = self.page.evaluate(_OUTPUTS, index)
        return found

    def edit(self, index: int) -> None:
        """Put the cursor behind the last character of a cell."""
        self.cell(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+End")

    def start(self, index: int) -> None:
        """Run a cell, and do not wait for it."""
        self.cell(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")

    def run(self, index: int) -> None:
        """Run a cell to its end."""
        before = self.prompt(index)
        self.start(index)
        wait_until(lambda: self._has_run(index, before), TIMEOUT_S, f"cell {index} has run: {self.prompt(index)}")
        self.until_status("idle")

    def prompt(self, index: int) -> str:
        """``[3]:`` and the like."""
        # not inner_text: Lab does not lay out cells that are outside the window
        return (self.cell(index).locator(".jp-InputPrompt").first.text_content() or "").strip()

    def prompts(self) -> list[str]:
        """Those of all cells."""
        return [self.prompt(index) for index in range(self.panel.locator(".jp-Cell").count())]

    def status(self) -> str:
        """What Lab takes the kernel's state to be: idle, busy, restarting, ..."""
        return str(self.page.evaluate(_KERNEL_STATUS))

    def until_status(self, status: str) -> None:
        """Wait for such a state, in the model and in the dot that a person sees."""
        wait_until(lambda: self.status() == status, TIMEOUT_S, f"the kernel is {status}")
        dot = self.panel.locator(".jp-Notebook-ExecutionIndicator")
        expect(dot).to_have_attribute("data-status", status)

    def tool(self, name: str) -> None:
        """Click a button of the notebook's tool bar."""
        self.panel.locator(f'.jp-NotebookPanel-toolbar [data-jp-item-name="{name}"] jp-button:not([disabled])').click()

    def menu(self, menu: str, item: str) -> None:
        """Choose from the menu bar."""
        self.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
        self.page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{re.escape(item)}$")).click()

    def accept(self) -> None:
        """Press the highlighted button of the dialog that is open, and wait until it has gone."""
        dialog = self.page.locator(".jp-Dialog")
        dialog.locator("button.jp-mod-accept").click()
        expect(dialog).to_have_count(0)

    def vm(self, index: int) -> str:
        """The name of the session's VM; that cell is ``%vm_info --json``."""
        self.run(index)
        return vm_name(self.outputs(index))

    def saved(self) -> dict[str, Any]:
        """Save the notebook; its file."""
        path = self.lab.server.root / str(self.page.evaluate(f"() => {_CURRENT}.context.path"))
        self.page.keyboard.press("Control+s")
        wait_until(lambda: not self.page.evaluate(f"() => {_CURRENT}.context.model.dirty"), TIMEOUT_S, "saved")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def _has_run(self, index: int, before: str) -> bool:
        now = self.prompt(index)
        return now != before and now[1:2].isdigit()


def vm_name(outputs: list[dict[str, Any]]) -> str:
    """The VM in what ``%vm_info --json`` has put out."""
    return str(json.loads(outputs[0]["data"]["text/plain"])["name"])
