"""Interrupts of ipykernel that take effect. The part that is inside ipykernel, and why all this: ``interruptible.py``.

All that is done to the process is to write aligned words into its types, from outside, while its main thread holds the
GIL: no other Python code runs meanwhile, and the first that does puts the words back.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: what interruptible.py has of the same names
_LET_THROUGH, _HELD_OFF, _TOO_EARLY = 1, 2, 4
#: seconds between two looks at what has become of an interrupt
_PAUSE_S = 0.03
#: seconds that an interrupt has to be noticed in the ordinary way
PATIENCE_S = 0.3
#: seconds in which an interrupt that was held off is tried again: the cell has not begun, or has just ended
_TRY_AGAIN_S = 1.0
#: seconds that an interrupt is watched while the main thread sleeps in C code, waits for the GIL, or starts a program
_WATCH_S = 10.0
#: CPU time, in clock ticks, that the main thread must spend with the GIL in its hands and blind to the signal
_TICKS = 4
#: seconds that the iterators are at their end
_HOLD_S = 0.2
_WORD = struct.Struct("=Q")
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Facts:
    """Addresses in the kernel process, and the words that are written there."""

    noticed: int
    judged: int
    verdict: int
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


class Interrupts:
    """Sends interrupts to one kernel process and its group. The agent's loop calls ``advance`` when it is due."""

    def __init__(self, pid: int, facts: Facts | None) -> None:
        self._pid = pid
        self._facts = facts
        #: value of ``noticed`` before the last SIGHUP
        self._counted = 0
        self._sent = 0.0
        #: when SIGINT followed; None while it has not
        self._struck: float | None = None
        self._blind_ticks: int | None = None
        #: it was held off or came too early, and is to be announced once more
        self._again = False
        #: the first time that it was announced
        self._asked = 0.0
        #: children are still to be interrupted
        self._children = False
        #: it was let through, and is only watched: another one is another one
        self._through = False
        #: when to look next (time.monotonic); None while there is nothing to watch
        self.due: float | None = None

    def send(self) -> bool:
        """Interrupt what runs, children included. False if there is no such process."""
        try:
            if self._facts is None:
                os.killpg(self._pid, signal.SIGINT)
                return True
            if self.due is None or self._through:
                self._asked = time.monotonic()
                self._children = True
                self._announce()
            elif not self._children:
                self._interrupt_children()
        except OSError:
            return False
        return True

    def advance(self) -> None:
        """See what has become of the last interrupt, and help it on."""
        if self.due is None or time.monotonic() < self.due:
            return
        self.due = None
        with contextlib.suppress(OSError):
            if self._again:
                self._announce()
            else:
                with self._memory() as memory:
                    self._see(memory)

    def _announce(self) -> None:
        """SIGHUP, and what follows it if it is noticed at once."""
        with self._memory() as memory:
            assert self._facts is not None
            self._counted = _read(memory, self._facts.noticed)
            self._struck, self._blind_ticks, self._again, self._through = None, None, False, False
            self._sent = time.monotonic()
            self._signal(signal.SIGHUP)
            while _read(memory, self._facts.judged) == self._counted and time.monotonic() - self._sent < _PAUSE_S:
                time.sleep(0.001)
            self._see(memory)

    def _see(self, memory: int) -> None:
        assert self._facts is not None
        now = time.monotonic()
        if _read(memory, self._facts.noticed) == self._counted:
            self._not_noticed(memory, now)
        elif _read(memory, self._facts.judged) == self._counted:
            self.due = now + _PAUSE_S
        else:
            self._judged(_read(memory, self._facts.verdict), now)

    def _judged(self, verdict: int, now: float) -> None:
        if verdict == _TOO_EARLY and now - self._asked < _WATCH_S:
            self._again, self.due = True, now + _PAUSE_S
            return
        if verdict == _HELD_OFF:
            if now - self._asked < _TRY_AGAIN_S:
                self._again, self.due = True, now + _PAUSE_S
        elif verdict in (_LET_THROUGH, _TOO_EARLY) and (self._struck is None or now - self._struck < PATIENCE_S):
            self._strike(now, due=verdict == _LET_THROUGH)
            self._through, self.due = True, now + _PAUSE_S
        if self._children:
            self._interrupt_children()

    def _strike(self, now: float, *, due: bool = False) -> None:
        """``due``: SIGINT is, in the main thread."""
        if self._struck is None:
            self._struck = now
            if not due:
                self._signal(signal.SIGINT)
            # after the main thread, which would otherwise find that its child has ended, and go on
            self._interrupt_children()
        else:
            # One that comes just when the main thread goes back to sleep is noted, and wakes nobody: wake it.
            self._signal(signal.SIGURG)

    def _not_noticed(self, memory: int, now: float) -> None:
        """The main thread is in C code: other handlers of SIGINT may be there, or a loop that looks for no signal."""
        self.due = now + _PAUSE_S
        if now - self._sent <= PATIENCE_S:
            return
        if self._struck is None:
            self._strike(now)
        ticks = self._computing(memory)
        if ticks is None:
            self._blind_ticks = None
            if now - self._sent > _WATCH_S:
                self.due = None
            return
        if self._blind_ticks is None:
            self._blind_ticks = ticks
        if ticks - self._blind_ticks >= _TICKS:
            self._end_loop(memory)
            self.due = None

    def _signal(self, number: int) -> None:
        """To the main thread itself: Linux gives a signal to a process to any thread, and wakes that one only."""
        _libc.tgkill(self._pid, self._pid, number)

    def _interrupt_children(self) -> None:
        """Everybody else in the kernel's process group. Not while a program starts there: see ``interruptible``."""
        self._children = False
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(entry.name)
                if pid != self._pid and os.getpgid(pid) == self._pid:
                    os.kill(pid, signal.SIGINT)

    def _computing(self, memory: int) -> int | None:
        """CPU time of the main thread, in clock ticks, if it runs and has the GIL; else None."""
        assert self._facts is not None
        status = Path(f"/proc/{self._pid}/task/{self._pid}/stat").read_text().rpartition(")")[2].split()
        if status[0] != "R" or _read(memory, self._facts.holder) != self._facts.main_thread:
            return None
        return int(status[11]) + int(status[12])

    def _end_loop(self, memory: int) -> None:
        assert self._facts is not None
        try:
            for slot, _ in self._facts.slots:
                _write(memory, slot, self._facts.ends)
            deadline = time.monotonic() + _HOLD_S
            while time.monotonic() < deadline and self._holds_on(memory):
                time.sleep(0.002)
        finally:
            for slot, value in self._facts.slots:
                _write(memory, slot, value)

    def _holds_on(self, memory: int) -> bool:
        """True while the main thread has the GIL and has noticed nothing."""
        assert self._facts is not None
        held = _read(memory, self._facts.holder) == self._facts.main_thread
        return held and _read(memory, self._facts.noticed) == self._counted

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
