"""The way into a VM: Lab's launcher."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.lab import Lab


def test_the_launcher_shows_the_kernel_with_its_logo(lab: Lab) -> None:
    lab.launcher()
    cards = lab.page.locator('.jp-LauncherCard[title^="VM Sandbox"]')
    expect(cards).to_have_count(2)  # a notebook, a console
    for card in cards.all():
        expect(card).to_contain_text("VM Sandbox")
        logo = card.locator("img")
        assert "/kernelspecs/vm-sandbox/logo" in str(logo.get_attribute("src"))
        expect(logo).to_have_js_property("complete", True)
        assert logo.evaluate("image => image.naturalWidth") > 0, "the picture has been loaded"


def test_a_new_notebook_runs_in_a_vm_and_keeps_its_kernel(lab: Lab) -> None:
    lab.launcher()
    lab.page.locator('.jp-LauncherCard[title^="VM Sandbox"]').first.click()
    notebook = lab.current()
    expect(notebook.panel.locator(".jp-Toolbar-kernelName")).to_have_text("VM Sandbox")
    notebook.edit(0)
    lab.page.keyboard.type("import getpass; getpass.getuser()")
    notebook.run(0)
    expect(notebook.output(0)).to_have_text("[1]:'sandbox'")
    metadata = notebook.saved()["metadata"]
    assert metadata["kernelspec"]["name"] == "vm-sandbox"
    assert metadata["kernelspec"]["display_name"] == "VM Sandbox"
    assert metadata["language_info"]["name"] == "python"
