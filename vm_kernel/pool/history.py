"""The last minutes of the pool, for charts: a ring of samples, taken every other second. Plain numbers, no clock."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

#: seconds between two samples, and how many are kept: ten minutes
EVERY_S = 2.0
LENGTH = 300


class Sample(NamedTuple):
    """The pool at one moment, all profiles together.

    host_mib: memory that the host could still give. own_mib: memory that the VMs have for themselves.
    acquire_ms: the longest acquire since the sample before; None if there was none.
    """

    warm: int
    leased: int
    waiting: int
    host_mib: int
    own_mib: int
    acquire_ms: float | None


class History:
    """The ring."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=LENGTH)

    def add(self, sample: Sample) -> None:
        """The newest sample."""
        self._samples.append(sample)

    @property
    def last(self) -> Sample | None:
        """The newest sample, if there is one."""
        return self._samples[-1] if self._samples else None

    def columns(self) -> dict[str, Any]:
        """``every_s`` and, under each field's name, its values, oldest first. JSON-able, some 10 kB at most."""
        values = zip(*self._samples, strict=True) if self._samples else ((),) * len(Sample._fields)
        return {"every_s": EVERY_S} | {name: list(column) for name, column in zip(Sample._fields, values, strict=True)}
