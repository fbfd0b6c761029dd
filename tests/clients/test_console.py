"""``jupyter console``: a person at a terminal."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

import pexpect
import pytest

from tests.clients.notebooks import plain, program
from tests.conftest import leases, wait_until

TIMEOUT_S = 120.0
#: The console gives the kernel one second for its history, and takes an answer that is later for that to its next
#: question, and so on until it ends: its prompts do not count then. On a busy machine that may happen to one of many.
pytestmark = [pytest.mark.timeout(400), pytest.mark.flaky(reruns=2)]


class Terminal:
    """A terminal in which the console runs. What is on the screen is compared without colours."""

    def __init__(self, kernel: str) -> None:
        self.screen = io.StringIO()
        # without the question where the cursor is, which only a real terminal answers
        environment = os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        # a busy machine may take a second to say that a cell is complete; then Enter would only break the line
        shell = "--ZMQTerminalInteractiveShell"
        words = ["--kernel", kernel, f"{shell}.highlighting_style=bw", f"{shell}.kernel_is_complete_timeout=30"]
        self.process = pexpect.spawn(
            program("jupyter-console"), words, env=environment, encoding="utf-8", dimensions=(40, 160)
        )
        self.process.logfile_read = self.screen
        self.seen = 0

    def until(self, text: str, timeout_s: float = TIMEOUT_S) -> None:
        """Read until that has been shown after what was waited for last."""

        def shown() -> bool:
            with contextlib.suppress(pexpect.TIMEOUT):
                self.process.read_nonblocking(65536, timeout=0.1)
            return text in plain(self.screen.getvalue())[self.seen :]

        try:
            wait_until(shown, timeout_s, f"{text!r} on the terminal")
        except AssertionError as error:
            error.add_note(f"what the terminal was sent: {self.screen.getvalue()[-2000:]!r}")
            raise
        whole = plain(self.screen.getvalue())
        self.seen = whole.index(text, self.seen) + len(text)

    def prompt(self, number: int) -> None:
        """Wait until the console asks for that cell."""
        self.until(f"In [{number}]: ")

    def cell(self, code: str) -> None:
        """Type a cell."""
        self.process.send(code)
        self.until(code)
        self.process.send("\r")


@pytest.fixture
def terminal(kernelspec: str) -> Iterator[Terminal]:
    """A console that waits for its first cell."""
    started = Terminal(kernelspec)
    try:
        started.prompt(1)
        yield started
    finally:
        started.process.close(force=True)


def test_cells_run_and_the_end_leaves_nothing(terminal: Terminal) -> None:
    terminal.cell("import os; print(os.getuid() * 42)")
    terminal.until("42000")
    terminal.prompt(2)
    terminal.cell("6 * 7")
    terminal.until("Out[2]: 42")
    terminal.prompt(3)
    wait_until(lambda: leases() == 1, 60.0, "the console is the only one with a VM")
    terminal.cell("exit")
    terminal.process.expect(pexpect.EOF, timeout=TIMEOUT_S)
    terminal.process.wait()
    assert terminal.process.exitstatus == 0
    wait_until(lambda: leases() == 0, 60.0, "the console's VM has been given back")


def test_input_asks_at_the_terminal(terminal: Terminal) -> None:
    terminal.cell("name = input('Wh' + 'o? ')")
    terminal.until("Who? ")
    terminal.process.send("Ada\r")
    terminal.prompt(2)
    terminal.cell("name[::-1]")
    terminal.until("Out[2]: 'adA'")


def test_ctrl_c_interrupts_the_cell_and_not_the_console(terminal: Terminal) -> None:
    terminal.cell("import time; print('beg' + 'un'); time.sleep(100)")
    terminal.until("begun")
    terminal.process.sendintr()
    terminal.until("KeyboardInterrupt")
    terminal.prompt(2)
    terminal.cell("6 * 7")
    terminal.until("Out[2]: 42")


def test_several_lines_and_an_error(terminal: Terminal) -> None:
    """The console asks the kernel whether a cell is complete, before it sends it or goes on to the next line."""
    terminal.cell("def f(x):")
    terminal.until("...: ")
    terminal.process.send("return x / 0\r\r")
    terminal.prompt(2)
    terminal.cell("f(1)")
    terminal.until("ZeroDivisionError: division by zero")
    terminal.prompt(3)
