"""Durations, remembered for a while and summed up for ``pool status``."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

#: how many of the last durations are kept
WINDOW = 1000


class Durations:
    """The last durations of one kind, in milliseconds."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._count = 0

    def add(self, seconds: float) -> None:
        """Remember one duration."""
        self._last.append(1000 * seconds)
        self._count += 1

    def summary(self) -> dict[str, Any]:
        """``count`` since the start; ``p50`` and ``p95`` in ms of the last thousand, None if there is none."""
        return {"count": self._count, "p50": self._quantile(0.5), "p95": self._quantile(0.95)}

    def _quantile(self, share: float) -> float | None:
        if not self._last:
            return None
        ordered = sorted(self._last)
        return round(ordered[math.ceil(share * len(ordered)) - 1], 3)  # nearest rank
