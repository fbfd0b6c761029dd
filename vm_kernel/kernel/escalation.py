"""What repeated interrupts of one cell mean: code may swallow KeyboardInterrupt, and its user wants it to end."""

from __future__ import annotations

from enum import Enum

from vm_kernel.kernel.requests import Request

#: a further interrupt within so many seconds is meant for a cell that did not stop
WITHIN_S = 5.0
#: a further interrupt within so many seconds is the same press of the button, by an impatient finger
SAME_PRESS_S = 0.3

OFFER = (
    f"The cell has not stopped. Interrupt it once more within {WITHIN_S:.0f} seconds to restart Python in a fresh "
    "virtual machine; the variables and files of this session will be lost.\n"
)
DONE = "Interrupted three times: Python is restarted in a fresh virtual machine.\n"


class Step(Enum):
    """What an interrupt is to do."""

    INTERRUPT = "interrupt"  # and nothing else
    OFFER = "offer"  # interrupt, and offer a restart
    RESTART = "restart"


class Escalation:
    """Counts the interrupts of the cell that runs."""

    def __init__(self) -> None:
        self._cell: Request | None = None
        self._last = 0.0
        self._count = 0

    def step(self, cell: Request | None, now: float) -> Step:
        """Called for each interrupt. ``cell``: what runs; ``now``: seconds of a monotonic clock."""
        since, self._last = now - self._last, now
        if cell is None or cell is not self._cell or since > WITHIN_S:
            self._cell, self._count = cell, 1
        elif since > SAME_PRESS_S:
            self._count += 1
            if self._count == 2:
                return Step.OFFER
            if self._count == 3:
                self._cell = None
                return Step.RESTART
        return Step.INTERRUPT
