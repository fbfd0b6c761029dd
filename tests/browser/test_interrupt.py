"""Stopping a cell, as a person does it."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.lab import Lab, Notebook

SLEEP, BUSY = "print('begun')\nimport time; time.sleep(1000)", "print('begun')\nwhile True: pass"


def test_the_tool_bar_and_the_keyboard_interrupt(lab: Lab) -> None:
    notebook = lab.notebook(SLEEP, BUSY, "6 * 7")
    begin(notebook, 0)
    notebook.tool("interrupt")
    interrupted(notebook, 0)
    begin(notebook, 1)
    lab.page.keyboard.press("i")
    lab.page.keyboard.press("i")
    interrupted(notebook, 1)
    notebook.run(2)
    expect(notebook.output(2)).to_have_text("[3]:42")


def begin(notebook: Notebook, index: int) -> None:
    """Start a cell that does not end."""
    notebook.start(index)
    expect(notebook.output(index)).to_contain_text("begun")
    notebook.until_status("busy")
    assert notebook.prompt(index) == "[*]:"


def interrupted(notebook: Notebook, index: int) -> None:
    """It ends, and says why."""
    expect(notebook.output(index)).to_contain_text("KeyboardInterrupt")
    notebook.until_status("idle")
    assert notebook.outputs(index)[-1]["ename"] == "KeyboardInterrupt"
    expect(notebook.cell(index).locator(".jp-InputPrompt").first).to_have_text(f"[{index + 1}]:")
