"""``vm-kernel pool status --watch``: the status and its last minutes, until Ctrl-C or the service's end."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vm_kernel.commands.sparkline import sparkline
from vm_kernel.errors import PoolUnavailable
from vm_kernel.pool.client import PoolConnection

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: characters of a sparkline at the most
MAX_WIDTH = 100
_LABEL_WIDTH = 30


def watch(interval_s: float) -> int:
    """Show the status every ``interval_s`` seconds: in place on a terminal, else one below the other.

    Raises PoolUnavailable if the service does not run to begin with. That it ends meanwhile is said, and no error.
    """
    from vm_kernel.commands.pool_tables import console as make_console

    console = make_console()
    facts = _ask()
    show = _in_place if console.is_terminal else _below
    with _terminated_like_interrupted():
        try:
            show(console, facts, interval_s)
        except KeyboardInterrupt:
            return 0
        except PoolUnavailable:
            console.print("The pool service has ended.")
    return 0


def _in_place(console: Console, facts: dict[str, Any], interval_s: float) -> None:
    from rich.console import Group
    from rich.live import Live

    def picture(facts: dict[str, Any]) -> Group:
        foot = f"every {interval_s:g} s; Ctrl-C ends this"
        return Group(*_parts(facts, console.width), foot)

    with Live(picture(facts), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(interval_s)
            live.update(picture(_ask()), refresh=True)


def _below(console: Console, facts: dict[str, Any], interval_s: float) -> None:
    while True:
        console.print(time.strftime("%Y-%m-%d %H:%M:%S"), *_parts(facts, console.width), "", sep="\n")
        sys.stdout.flush()
        time.sleep(interval_s)
        facts = _ask()


def _parts(facts: dict[str, Any], width: int) -> list[RenderableType]:
    from vm_kernel.commands.pool_tables import tables

    return tables(facts, between=_sparklines(facts, width))


def _ask() -> dict[str, Any]:
    """One connection a time: one that asks nothing for ten seconds would be sent away."""
    connection = PoolConnection.open(start_service=False)
    try:
        return connection.status(history=True)
    finally:
        connection.close()


def _sparklines(facts: dict[str, Any], console_width: int) -> Iterator[RenderableType]:
    history = facts.get("history") or {}
    width = min(MAX_WIDTH, console_width - _LABEL_WIDTH)
    count = len(history.get("leased") or ())
    if width < 8 or count < 2:
        return
    seconds = (count - 1) * history["every_s"]
    yield f"the last {seconds / 60:.0f} min" if seconds >= 100 else f"the last {seconds:.0f} s"
    vms = max(1.0, *(max(history[name]) for name in ("warm", "leased", "waiting")))
    for name in ("leased", "warm", "waiting"):
        yield _row(name, f"{history[name][-1]}", sparkline(history[name], width, vms))
    # from 0.1 ms on, every factor of ten is a step: a warm VM takes one, a golden snapshot that must be built 30,000
    acquires = [None if ms is None else math.log10(max(ms, 0.1)) + 1.0 for ms in history["acquire_ms"]]
    last = next((ms for ms in reversed(history["acquire_ms"]) if ms is not None), None)
    yield _row(
        "acquire, log.",
        "-" if last is None else f"{last / 1000:.1f} s" if last >= 1000 else f"{last:.1f} ms",
        sparkline(acquires, width),
    )
    yield _row("host memory", f"{history['host_mib'][-1]} MiB", sparkline(history["host_mib"], width))
    yield _row("memory of VMs", f"{history['own_mib'][-1]} MiB", sparkline(history["own_mib"], width))


def _row(name: str, latest: str, line: str) -> str:
    return f"{name:<14}{latest:>13}  {line}"


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, too, leaves the terminal as it was."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
