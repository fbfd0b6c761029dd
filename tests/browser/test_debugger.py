"""Lab's debugger: a breakpoint in a cell, what the panels show there, a step, and on."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.lab import Lab, Notebook

CODE = """\
def area(width, height):
    surface = width * height
    return surface

print('area', area(6, 7))"""


def test_a_breakpoint_is_hit_and_the_panels_show_where(lab: Lab) -> None:
    lab.page.set_viewport_size({"width": 1100, "height": 640})
    notebook = lab.notebook(CODE, "area(2, 3)")
    lab.page.keyboard.press("Control+b")  # room: without the file browser
    notebook.tool("debugger-icon")
    set_breakpoint(notebook, 0, line=2)
    notebook.start(0)
    side = lab.page.locator(".jp-DebuggerSidebar")
    frames = side.locator(".jp-DebuggerCallstack-body li")
    expect(frames).to_have_count(2)
    expect(frames.nth(0)).to_contain_text("area")
    expect(frames.nth(1)).to_contain_text("<module>")
    variables = side.locator(".jp-DebuggerVariables-body:not(.lm-mod-hidden)")
    # the colons that are seen are of the style sheet
    expect(variables).to_have_text(re.compile(r"^\s*height:?\s*7\s*width:?\s*6\s*$"))
    expect(notebook.cell(0).locator(".jp-DebuggerEditor-highlight")).to_have_text("    surface = width * height")
    assert notebook.prompt(0) == "[*]:", "the cell stands still"

    side.locator('jp-button[title^="Next"]').click()
    expect(variables).to_have_text(re.compile(r"surface:?\s*42"))
    expect(notebook.cell(0).locator(".jp-DebuggerEditor-highlight")).to_have_text("    return surface")
    lab.shot("debugger")
    assert notebook.outputs(0) == []

    side.locator('jp-button[title^="Continue"]').click()
    expect(notebook.output(0)).to_have_text("area 42\n")
    notebook.until_status("idle")
    expect(frames).to_have_count(0)

    notebook.start(1)
    expect(frames.nth(0)).to_contain_text("area")
    side.locator('jp-button[title^="Continue"]').click()
    expect(notebook.output(1)).to_have_text("[2]:6")


def set_breakpoint(notebook: Notebook, index: int, line: int) -> None:
    """Click beside the number of a line, which is there once the debugger is."""
    # the first element is not a line: it gives the column its width
    gutter = notebook.cell(index).locator(".cm-breakpoint-gutter .cm-gutterElement").nth(line)
    gutter.click()
    expect(gutter.locator(".cm-breakpoint-icon")).to_be_visible()
    expect(notebook.page.locator(".jp-DebuggerBreakpoints-body")).to_contain_text(str(line))
