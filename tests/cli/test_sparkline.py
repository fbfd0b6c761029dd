"""Sparklines: pure."""

from __future__ import annotations

import pytest

from vm_kernel.commands.sparkline import sparkline


@pytest.mark.parametrize(
    ("values", "width", "highest", "line"),
    [
        ([], 10, None, ""),
        ([1, 2], 0, None, ""),
        ([0, 0, 0], 10, None, "▁▁▁"),
        ([0, 7], 10, None, "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, None, "▁▂▃▄▅▆▇█"),
        ([1, 2], 10, 14, "▂▂"),
        ([20], 10, 10, "█"),
        ([-5], 10, 10, "▁"),
        ([None, 3, None], 10, None, " █ "),
        ([None, None], 10, None, "  "),
        ([1, 7, 0, 0], 2, None, "█▁"),
        ([0, None, None, None, 7, None], 3, None, "▁ █"),
    ],
)
def test_lines(values: list[float | None], width: int, highest: float | None, line: str) -> None:
    assert sparkline(values, width, highest) == line


def test_no_value_is_lost_however_many_there_are() -> None:
    for count in (7, 8, 99, 300):
        values: list[float | None] = [0.0] * count
        for place in range(count):
            assert "█" in sparkline([*values[:place], 1.0, *values[place + 1 :]], 7)
        assert len(sparkline(values, 7)) == 7
