"""Outputs that attack the person's browser: none of attacks.toml succeeds, unless the person trusts the guest."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import nbformat
import pytest
from nbformat import NotebookNode
from playwright.sync_api import Error, Locator, expect

from tests.browser.attacks import Attack, load
from tests.browser.lab import Lab, Notebook
from tests.browser.policies import ISOLATED, STATIC, TRUSTED, profiles
from tests.browser.witness import Witness
from tests.conftest import wait_until
from tests.lab_server import LabServer

PRELUDE, ATTACKS = load()
SUCCEED = {attack.name for attack in ATTACKS if attack.under_trusted}
TAKEN_AWAY = {attack.name for attack in ATTACKS if attack.taken_away}
#: how long an attack that is expected is waited for, at first and when it is run once more, and again
PATIENCE_S = (2.0, 5.0, 20.0)
#: how long those that are not expected have, after all of a notebook have run
SETTLING_S = 2.0
#: how long something to click on is looked for, and that which ought not to be there
APPEARS_S = 30.0
GONE_S = 0.5
#: the part of its patience for which it is tried to click on something
CLICKABLE = 0.25
#: attacks in one notebook: more make Lab slow
TOGETHER = 50
#: under `static`, where there is neither HTML nor a widget: some of each kind
OF_EACH_KIND = 6

_CURRENT = "window.jupyterapp.shell.currentWidget"
_SHOW_ALL_CELLS = f"{_CURRENT}.content.notebookConfig = {{...{_CURRENT}.content.notebookConfig, windowingMode: 'none'}}"
_CLEAR = f"n => {_CURRENT}.content.widgets[n].outputArea.model.clear()"
_RENDER_VARIABLE = "name => window.jupyterapp.commands.execute('debugger:render-mime-variable', {name})"
_TO_FRONT = "id => window.jupyterapp.shell.activateById(id)"
_CLOSE_OTHERS = """id => {
    for (const widget of [...window.jupyterapp.shell.widgets('main')]) if (widget.id !== id) widget.close();
    window.jupyterapp.shell.activateById(id);
}"""
_OPEN_TERMINAL = """\
from IPython.display import HTML
HTML("<p>plain</p><script>fetch('/api/terminals', {method: 'POST', headers: {'X-XSRFToken': "
     "(document.cookie.match(/_xsrf=([^;]+)/) || [])[1]}})</script>")"""
HONEST = "from IPython.display import HTML\nHTML('<table id=honest><tr><th>word<td>honest</table>')"


@pytest.fixture(scope="module", autouse=True)
def _policies(server: LabServer) -> Iterator[None]:
    with profiles(
        trusted={"outputs": "trusted", "min_warm": 1, "max_vms": 4},
        static={"outputs": "static", "min_warm": 0, "max_vms": 4},
    ):
        yield


@pytest.mark.timeout(900)
def test_no_attack_succeeds(lab: Lab) -> None:
    assault = Assault(lab, ISOLATED, expected=set())
    witness = assault.run(ATTACKS)
    assert not witness.look(), witness.told(witness.look())
    assert assault.not_shown == TAKEN_AWAY


@pytest.mark.timeout(900)
def test_under_trusted_they_do(lab: Lab) -> None:
    witness = Assault(lab, TRUSTED, expected=SUCCEED).run(ATTACKS)
    missed = sorted(SUCCEED - witness.look())
    assert not missed, f"these test nothing: {missed}"
    assert not witness.look() - SUCCEED, f"marked as stopped by Lab itself:\n{witness.told(witness.look() - SUCCEED)}"


def test_a_notebook_is_usable_after_attacks(lab: Lab) -> None:
    cells = (PRELUDE, *cells_of([attack for attack in ATTACKS if not attack.alone][::4], lab), HONEST)
    notebook = lab.notebook(*cells)
    run_all(notebook)
    last = len(cells) - 1
    notebook.run(last)
    expect(notebook.output(last).locator("table")).to_be_visible()
    expect(notebook.output(last).locator("td")).to_have_text("honest")
    notebook.cell(last).scroll_into_view_if_needed()


def test_under_static_plain_text_is_all_that_is_left(lab: Lab) -> None:
    kinds = ("html", "script", "mutation", "mime", "markdown", "math", "message", "widget")
    chosen = [
        attack
        for kind in kinds
        for attack in [a for a in ATTACKS if a.name.startswith(kind) and not (a.act or a.alone)][:OF_EACH_KIND]
    ]
    assault = Assault(lab, STATIC, expected=set())
    witness = assault.run(chosen)
    assert not witness.look(), witness.told(witness.look())
    notebook = Notebook(lab)
    shown = "\n".join(notebook.output(index).inner_text() for index in range(1, len(chosen) + 1))
    assert shown.count("plain text") > len(chosen) / 2
    for kind in ("iframe", ".jp-RenderedHTML", ".jupyter-widgets"):
        expect(notebook.panel.locator(f".jp-Cell-outputArea {kind}")).to_have_count(0)


@pytest.mark.parametrize(("kernel", "opened"), [(TRUSTED, 1), (ISOLATED, 0)])
def test_what_is_at_stake(lab: Lab, server: LabServer, kernel: str, opened: int) -> None:
    """One attack as it would be made, and what it leads to: a shell on the host."""
    notebook = lab.notebook(_OPEN_TERMINAL, kernel=kernel)
    notebook.run(0)
    time.sleep(1.0 if not opened else 0.0)
    wait_until(lambda: len(server.request("GET", "terminals")) == opened, PATIENCE_S[-1], f"{opened} terminals")
    for terminal in server.request("GET", "terminals"):
        server.request("DELETE", f"terminals/{terminal['name']}")


class Assault:
    """Runs attacks under one kernel. ``expected``: the names of those that are waited for."""

    def __init__(self, lab: Lab, kernel: str, expected: set[str]) -> None:
        self.lab = lab
        self.page = lab.page
        self.kernel = kernel
        #: of which there need be nothing to click on, here or any more
        self.gone = TAKEN_AWAY if kernel == ISOLATED else {attack.name for attack in ATTACKS} - SUCCEED
        self.expected = expected
        self.witness = Witness(lab.page)
        self.patience_s = PATIENCE_S[0]
        #: attacks of which nothing that is to be clicked on was found
        self.not_shown: set[str] = set()
        self.acts: dict[str, Callable[[Notebook, Attack, int], None]] = {
            "click": self._click,
            "corner": self._corner,
            "inspect": self._inspect,
            "contextual-help": self._contextual_help,
            "complete": self._complete,
            "debug": self._debug,
            "help": self._help,
            "reload": self._reload,
        }

    def run(self, attacks: list[Attack]) -> Witness:
        """All of them, and those that are expected and have not come once more: a busy browser may be late."""
        for self.patience_s in PATIENCE_S:
            self._round(attacks)
            missing = self.expected - self.witness.look()
            attacks = [attack for attack in attacks if attack.name in missing]
        return self.witness

    def _round(self, attacks: list[Attack]) -> None:
        """First those that need a notebook, then those that need a person, then those that need nobody."""
        for attack in (attack for attack in attacks if attack.alone):
            self._one_by_one([attack])
        acting = [attack for attack in attacks if attack.act and not attack.alone]
        self._one_by_one([attack for attack in acting if attack.act != "click"])
        self._clicks([attack for attack in acting if attack.act == "click"])
        passive = [attack for attack in attacks if not (attack.act or attack.alone)]
        for first in range(0, len(passive), TOGETHER):
            self._together(passive[first : first + TOGETHER])

    def _together(self, attacks: list[Attack]) -> None:
        notebook = self._open(attacks)
        run_all(notebook)
        self._until_seen({attack.name for attack in attacks})
        if not self.expected:
            self.page.wait_for_timeout(SETTLING_S * 1000)

    def _clicks(self, attacks: list[Attack]) -> None:
        if not attacks:
            return
        notebook = self._open(attacks)
        run_all(notebook)
        for index, attack in enumerate(attacks, 1):
            self._act(notebook, attack, index)

    def _one_by_one(self, attacks: list[Attack]) -> None:
        if not attacks:
            return
        notebook = self._open(attacks)
        notebook.run(0)
        for index, attack in enumerate(attacks, 1):
            notebook.run(index)
            self._act(notebook, attack, index)

    def _act(self, notebook: Notebook, attack: Attack, index: int) -> None:
        """Do what a person does, see what comes of it, and tidy up."""
        panel = self.page.evaluate(f"() => {_CURRENT}.id")
        self.witness.current = attack.name
        if attack.act:
            self.acts[attack.act](notebook, attack, index)
        self._until_seen({attack.name})
        self.witness.current = ""
        if not attack.alone:
            self._tidy(panel, index)

    def _open(self, attacks: list[Attack]) -> Notebook:
        """A notebook of their own, and no other beside it: each has a VM."""
        self.lab.server.end_kernels()
        notebook = self.lab.notebook(PRELUDE, *cells_of(attacks, self.lab), "attacked", kernel=self.kernel)
        self.page.evaluate(_SHOW_ALL_CELLS)
        return notebook

    def _until_seen(self, names: set[str]) -> None:
        """Wait for those that are expected. That some do not come is the test's to say."""
        deadline = time.monotonic() + self.patience_s
        while (names & self.expected) - self.witness.look() and time.monotonic() < deadline:
            self.page.wait_for_timeout(20)

    def _tidy(self, panel: str, index: int) -> None:
        """Out of the next attack's way: what this one has put out, and what Lab says of it."""
        while (button := self.page.locator(".jp-Dialog-button")).count():
            button.first.click()
        self.witness.close_popups()
        self.page.bring_to_front()
        self.page.evaluate(_CLOSE_OTHERS, panel)
        self.page.evaluate(_CLEAR, index)
        self.page.keyboard.press("Escape")

    # ---- what a person does

    def _click(self, notebook: Notebook, attack: Attack, index: int) -> None:
        for target in attack.targets():
            found = self._find(notebook, index, target, GONE_S if attack.name in self.gone else APPEARS_S)
            if found is None:
                self.not_shown.add(attack.name)
                return
            try:
                found.click(timeout=CLICKABLE * self.patience_s * 1000)
            except Error:
                # covered or moved away: then it is nothing that a person can click
                continue

    def _find(self, notebook: Notebook, index: int, target: str, timeout_s: float) -> Locator | None:
        """Wherever it is shown, also in a frame within a frame."""
        deadline = time.monotonic() + timeout_s
        while True:
            inside = [frame.locator(target) for frame in self.page.frames[1:]]
            for found in (notebook.output(index).locator(target), *inside):
                if found.count():
                    return found.first
            if time.monotonic() > deadline:
                return None
            self.page.wait_for_timeout(50)

    def _corner(self, notebook: Notebook, attack: Attack, index: int) -> None:
        self.page.wait_for_timeout(200)
        box = notebook.panel.locator(".jp-WindowedPanel-outer").bounding_box()
        assert box is not None
        self.page.mouse.click(box["x"] + 5, box["y"] + 40)

    def _inspect(self, notebook: Notebook, attack: Attack, index: int) -> None:
        self._at_end(notebook)
        self.page.keyboard.press("Shift+Tab")
        self.page.locator(".jp-Tooltip").wait_for()

    def _contextual_help(self, notebook: Notebook, attack: Attack, index: int) -> None:
        self.page.evaluate("() => window.jupyterapp.commands.execute('inspector:open')")
        self._at_end(notebook)
        self.page.keyboard.press("Home")
        self.page.locator(".jp-Inspector-content *").first.wait_for()

    def _complete(self, notebook: Notebook, attack: Attack, index: int) -> None:
        self._at_end(notebook)
        self.page.keyboard.press("Tab")
        self.page.locator(".jp-Completer-item").first.wait_for()

    def _debug(self, notebook: Notebook, attack: Attack, index: int) -> None:
        notebook.tool("debugger-icon")
        self.page.locator(".jp-DebuggerVariables-body", has_text=attack.at[0]).first.wait_for()
        self.page.evaluate(_RENDER_VARIABLE, attack.at[0])
        self.page.locator(".jp-VariableRendererPanel").first.wait_for()

    def _help(self, notebook: Notebook, attack: Attack, index: int) -> None:
        self._reload(notebook, attack, index)
        panel = self.page.evaluate(f"() => {_CURRENT}.id")
        for number in (1, 2, 3):
            self.page.evaluate(_TO_FRONT, panel)
            self.page.locator(".lm-MenuBar-itemLabel", has_text="Help").click()
            item = self.page.locator(".lm-Menu-itemLabel", has_text=f"kernel link {number}")
            if item.count():
                item.click()
            else:
                self.page.keyboard.press("Escape")

    def _reload(self, notebook: Notebook, attack: Attack, index: int) -> None:
        notebook.saved()
        self.page.reload()
        self.lab.current()
        self.page.evaluate(_SHOW_ALL_CELLS)

    def _at_end(self, notebook: Notebook) -> None:
        notebook.edit(notebook.panel.locator(".jp-Cell").count() - 1)


def cells_of(attacks: Iterable[Attack], lab: Lab) -> list[NotebookNode]:
    """A cell each; one that fails does not keep the next from running."""
    metadata = {"tags": ["raises-exception"]}
    return [nbformat.v4.new_code_cell(attack.cell(lab.server.url), metadata=metadata) for attack in attacks]


def run_all(notebook: Notebook) -> None:
    """Run all cells of a notebook, and wait for the last one."""
    last = notebook.panel.locator(".jp-Cell").count() - 1
    notebook.menu("Run", "Run All Cells")
    wait_until(lambda: notebook.prompt(last)[1:2].isdigit(), 100.0, "all cells have run")
