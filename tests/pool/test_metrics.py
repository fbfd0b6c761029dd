"""Durations: pure arithmetic."""

from __future__ import annotations

import pytest

from vm_kernel.pool.metrics import WINDOW, Durations


def summary(seconds: list[float]) -> dict[str, float | None]:
    durations = Durations()
    for value in seconds:
        durations.add(value)
    return durations.summary()


@pytest.mark.parametrize(
    ("seconds", "p50", "p95"),
    [
        ([], None, None),
        ([0.002], 2.0, 2.0),
        ([0.001, 0.9], 1.0, 900.0),
        ([n / 1000 for n in range(1, 101)], 50.0, 95.0),
    ],
)
def test_quantiles_are_of_the_nearest_rank(seconds: list[float], p50: float | None, p95: float | None) -> None:
    assert summary(seconds) == {"count": len(seconds), "p50": p50, "p95": p95}


def test_only_the_last_ones_count() -> None:
    assert summary([9.0] * 10 + [0.001] * WINDOW) == {"count": WINDOW + 10, "p50": 1.0, "p95": 1.0}
