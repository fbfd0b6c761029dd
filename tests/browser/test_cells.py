"""Cells and what they put out."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.lab import Lab

PLOT = """\
import matplotlib.pyplot as plt
plt.plot([1, 4, 9, 16])
plt.show()"""


def test_cells_show_what_they_print_return_display_and_raise(lab: Lab) -> None:
    notebook = lab.notebook(
        "x = 6\nprint('printed', x)",
        "x * 7",
        "from IPython.display import HTML\nHTML('<b>bold</b>')",
        "import sys; print('complaint', file=sys.stderr)",
        "1 / 0",
    )
    for index in range(5):
        notebook.run(index)
    assert [notebook.prompt(index) for index in range(5)] == [f"[{n}]:" for n in range(1, 6)]
    expect(notebook.output(0)).to_have_text("printed 6\n")
    expect(notebook.output(1)).to_have_text("[2]:42")
    expect(notebook.output(2).locator("b", has_text="bold")).to_be_visible()
    expect(notebook.output(3).locator('[data-mime-type="application/vnd.jupyter.stderr"]')).to_have_text("complaint\n")
    expect(notebook.output(4)).to_contain_text("ZeroDivisionError: division by zero")
    assert [output["output_type"] for n in range(5) for output in notebook.outputs(n)] == [
        *("stream", "execute_result", "execute_result", "stream", "error")
    ]


def test_a_plot_appears(lab: Lab) -> None:
    notebook = lab.notebook(PLOT)
    notebook.run(0)
    picture = notebook.output(0).locator("img")
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 200
    assert picture.bounding_box()["width"] > 200  # type: ignore[index]


def test_pool_status_is_a_table(lab: Lab) -> None:
    notebook = lab.notebook("%vm_info --json", "%pool_status")
    ours = notebook.vm(0)
    notebook.run(1)
    table = notebook.output(1).locator("table", has=lab.page.locator("caption", has_text="VMs"))
    expect(table).to_be_visible()
    row = table.locator("tr", has_text=ours)
    expect(row).to_have_count(1)
    expect(row).to_contain_text("this session for")


def test_input_asks_in_the_notebook(lab: Lab) -> None:
    notebook = lab.notebook(
        "name = input('Who? ')\nprint('Hello', name)", "import getpass\nlen(getpass.getpass('Word: '))"
    )
    notebook.start(0)
    box = notebook.cell(0).locator("input.jp-Stdin-input")
    box.wait_for()
    expect(notebook.cell(0).locator(".jp-Stdin-prompt")).to_have_text("Who? ")
    lab.shot("input")
    box.fill("Ada")
    box.press("Enter")
    expect(notebook.output(0)).to_contain_text("Hello Ada")
    notebook.start(1)
    box = notebook.cell(1).locator("input.jp-Stdin-input")
    box.wait_for()
    assert box.get_attribute("type") == "password"
    box.fill("secret")
    box.press("Enter")
    expect(notebook.output(1)).to_contain_text("6")
    assert "secret" not in notebook.output(1).inner_text()
    notebook.until_status("idle")


def test_tab_completes_from_the_vm(lab: Lab) -> None:
    notebook = lab.notebook("word_of_the_guest = 'x'\ndef word_of_another(): pass", "word_of_", "word_of_the_guest.upp")
    notebook.run(0)
    notebook.edit(1)
    lab.page.keyboard.press("Tab")
    entries = lab.page.locator(".jp-Completer .jp-Completer-item")
    expect(entries).to_have_count(2)
    # not their types: IPython leaves them out when they take it too long
    expect(entries.filter(has_text="word_of_another")).to_be_visible()
    lab.shot("completion")
    entries.filter(has_text="word_of_the_guest").click()
    expect(notebook.cell(1).locator(".cm-content")).to_have_text("word_of_the_guest")
    notebook.edit(2)
    lab.page.keyboard.press("Tab")
    expect(entries).to_have_count(1)
    expect(entries).to_contain_text("upper")
    lab.page.keyboard.press("Enter")
    expect(notebook.cell(2).locator(".cm-content")).to_have_text("word_of_the_guest.upper")


def test_shift_tab_shows_the_documentation_from_the_vm(lab: Lab) -> None:
    notebook = lab.notebook("def area(width, height):\n    'Of a rectangle.'", "area(")
    notebook.run(0)
    notebook.edit(1)
    lab.page.keyboard.press("Shift+Tab")
    tooltip = lab.page.locator(".jp-Tooltip")
    expect(tooltip).to_contain_text("area(width, height)")
    expect(tooltip).to_contain_text("Of a rectangle.")
