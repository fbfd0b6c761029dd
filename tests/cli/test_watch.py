"""``vm-kernel pool status --watch``: in place on a terminal, one below the other elsewhere, and a clean end."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.command import vm_kernel
from tests.conftest import stop_service
from vm_kernel.pool.client import PoolConnection

COMMAND = [sys.executable, "-m", "vm_kernel.cli", "pool", "status", "--watch", "--interval", "0.5"]


def reader(fd: int, process: subprocess.Popen[bytes]) -> Callable[[Callable[[str], bool]], str]:
    """A function that reads until what has been read so far is ``enough``, or all has been read."""
    seen = b""

    def until(enough: Callable[[str], bool]) -> str:
        nonlocal seen
        deadline = time.monotonic() + 60.0
        while not enough(seen.decode(errors="replace")):
            assert time.monotonic() < deadline, seen[-2000:]
            try:
                data = os.read(fd, 65536)
            except OSError:  # a terminal whose other end is closed
                data = b""
            if not data:
                break
            seen += data
        return seen.decode(errors="replace")

    return until


def test_where_there_is_no_terminal_it_is_printed_again_and_again(pool: PoolConnection) -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        until = reader(process.stdout.fileno(), process)
        text = until(lambda seen: seen.count("host memory  ") >= 6 and "the last " in seen)
        process.send_signal(signal.SIGINT)
        text = until(lambda _: False)
        assert process.stderr.read() == b""
        assert process.wait(20) == 0
    assert text.count("\nservice ") >= 3
    assert "\x1b" not in text
    for name in ("leased", "warm", "waiting", "acquire, log.", "memory of VMs"):
        assert f"\n{name}" in text


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_is_left_as_it_was(pool: PoolConnection, end: signal.Signals) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, env=_terminal()) as process:
        os.close(theirs)
        until = reader(ours, process)
        until(lambda seen: seen.count("Ctrl-C ends this") >= 3)
        process.send_signal(end)
        text = until(lambda _: False)
        assert process.wait(20) == 0
    os.close(ours)
    assert "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"


def test_the_end_of_the_service_is_its_end(vm_home: Path) -> None:
    with closing(PoolConnection.open()):
        pass
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        until = reader(process.stdout.fileno(), process)
        until(lambda seen: "host memory" in seen)
        stop_service()
        assert until(lambda _: False).rstrip().endswith("The pool service has ended.")
        assert process.wait(20) == 0


def test_without_a_service_there_is_nothing_to_watch(vm_home: Path) -> None:
    stop_service()
    done = vm_kernel("pool", "status", "--watch")
    assert done.returncode == 1
    assert "not running" in done.stderr


@pytest.mark.parametrize("words", [("--watch", "--json"), ("--watch", "--interval", "0"), ("--interval", "x")])
def test_wrong_options_are_refused(words: tuple[str, ...]) -> None:
    assert vm_kernel("pool", "status", *words).returncode == 2


def _terminal() -> dict[str, str]:
    return os.environ | {"TERM": "xterm", "COLUMNS": "140", "LINES": "60"}
