"""One Jupyter server and one browser for all tests of this folder; a window, a notebook and a kernel for each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.lab import SCREENSHOTS, TIMEOUT_S, Lab
from tests.lab_server import LabServer, lab_server

#: Debian's Chromium, which updates nothing and sends nothing home; its own sandbox refuses root
CHROMIUM = ("chromium", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync")


@pytest.fixture(scope="package")
def server(kernelspec: str, warm_pool: None, vm_home: Path) -> Iterator[LabServer]:
    """A Jupyter server that shows an empty folder."""
    root = vm_home / "notebooks"
    root.mkdir()
    with lab_server(vm_home, root) as running:
        yield running


# Not longer than this folder's tests: while Playwright's loop runs in this thread, asynchronous tests cannot run.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without a window on the screen."""
    program = shutil.which(CHROMIUM[0])
    assert program, "Debian's package chromium is not installed; scripts/setup.sh test does it"
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=TIMEOUT_S * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=[*CHROMIUM[1:], *QUIET])
        yield chromium
        chromium.close()


@pytest.fixture
def lab(server: LabServer, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A window of its own. What it shows at the end, also of a test that fails, is kept as a picture."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(TIMEOUT_S * 1000)
    window = Lab(page, server)
    try:
        yield window
    finally:
        window.shot(request.node.name)
        page.close()
        server.end_kernels()
