"""Durations: the last ones for ``pool status``, all of them in buckets for Prometheus. No input or output here."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from typing import Any

#: how many of the last durations are kept
WINDOW = 1000
#: upper ends of the buckets, in seconds: from a warm VM at hand to a golden snapshot that has to be built first
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
             300.0)  # fmt: skip


class Durations:
    """The durations of one kind."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self.count = 0
        #: of all, in seconds
        self.total_s = 0.0

    def add(self, seconds: float) -> None:
        """Remember one duration."""
        self._last.append(1000 * seconds)
        self._buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.count += 1
        self.total_s += seconds

    def summary(self) -> dict[str, Any]:
        """``count`` since the start; ``p50``, ``p95``, ``p99`` in ms of the last thousand, None if there is none."""
        ordered = sorted(self._last)
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        return {"count": self.count} | {name: _quantile(ordered, share) for name, share in shares.items()}

    def latest(self, count: int) -> list[float]:
        """The last ``count`` durations that are still known, in milliseconds."""
        return list(self._last)[-count:] if count > 0 else []

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: how many durations were at most so long, cumulative, ``+Inf`` last."""
        found, below = [], 0
        for end, count in zip((*map(str, BUCKETS_S), "+Inf"), self._buckets, strict=True):
            below += count
            found.append((end, float(below)))
        return found


def _quantile(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return round(ordered[math.ceil(share * len(ordered)) - 1], 3)  # nearest rank
