"""In the agent: ends a loop in C that ipykernel is stuck in when it is interrupted. Why and how: ``interruptible.py``.

All that is done to the process is to write aligned words into its types, from outside, while its main thread holds the
GIL: no other Python code runs meanwhile, and the first that does puts the words back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: seconds that an interrupt has to be noticed in the ordinary way
PATIENCE_S = 0.3
#: seconds between two looks at the main thread
_PAUSE_S = 0.02
#: CPU time, in clock ticks, that it must spend with the GIL in its hands and blind to the signal
_TICKS = 4
#: seconds that the iterators are at their end
_HOLD_S = 0.2
_WORD = struct.Struct("=Q")


@dataclass(frozen=True)
class Facts:
    """Addresses in the kernel process, and the words that are written there."""

    counter: int
    holder: int
    main_thread: int
    ends: int
    slots: list[tuple[int, int]]

    @classmethod
    def read(cls, path: Path) -> Facts | None:
        """What ``interruptible.prepare`` has written; None if it could not find its way in this Python."""
        try:
            fields = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        return cls(**{**fields, "slots": [(slot, value) for slot, value in fields["slots"]]})


class StuckLoop:
    """Watches one kernel process after an interrupt. The agent's loop calls ``advance`` when it is due."""

    def __init__(self, pid: int, facts: Facts | None) -> None:
        self._pid = pid
        self._facts = facts
        self._counted = 0
        self._ticks: int | None = None
        #: when to look next (time.monotonic); None while there is nothing to watch
        self.due: float | None = None

    def interrupted(self) -> None:
        """Called right after SIGINT has been sent."""
        if self._facts is None or self.due is not None:
            return
        with contextlib.suppress(OSError), self._memory() as memory:
            self._counted = _read(memory, self._facts.counter)
            os.kill(self._pid, signal.SIGHUP)
            self._ticks = None
            self.due = time.monotonic() + PATIENCE_S

    def advance(self) -> None:
        """Look whether the process is stuck; end its loop if it surely is."""
        if self.due is None or time.monotonic() < self.due:
            return
        self.due = None
        with contextlib.suppress(OSError), self._memory() as memory:
            ticks = self._computing(memory)
            if ticks is None:
                return
            if self._ticks is None:
                self._ticks = ticks
            if ticks - self._ticks < _TICKS:
                self.due = time.monotonic() + _PAUSE_S
                return
            self._end_loop(memory)

    def _end_loop(self, memory: int) -> None:
        assert self._facts is not None
        try:
            for slot, _ in self._facts.slots:
                _write(memory, slot, self._facts.ends)
            deadline = time.monotonic() + _HOLD_S
            while _read(memory, self._facts.counter) == self._counted and time.monotonic() < deadline:
                time.sleep(0.002)
        finally:
            for slot, value in self._facts.slots:
                _write(memory, slot, value)

    def _computing(self, memory: int) -> int | None:
        """CPU time of the main thread, in ticks, if it runs, has the GIL and has not noticed the signal; else None."""
        assert self._facts is not None
        if _read(memory, self._facts.counter) != self._counted:
            return None
        status = Path(f"/proc/{self._pid}/task/{self._pid}/stat").read_text().rpartition(")")[2].split()
        if status[0] != "R" or _read(memory, self._facts.holder) != self._facts.main_thread:
            return None
        return int(status[11]) + int(status[12])

    @contextlib.contextmanager
    def _memory(self) -> Iterator[int]:
        memory = os.open(f"/proc/{self._pid}/mem", os.O_RDWR)
        try:
            yield memory
        finally:
            os.close(memory)


def _read(memory: int, address: int) -> int:
    value: int = _WORD.unpack(os.pread(memory, 8, address))[0]
    return value


def _write(memory: int, address: int, value: int) -> None:
    os.pwrite(memory, _WORD.pack(value), address)
