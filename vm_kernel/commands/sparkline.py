"""A line of block characters that shows how a figure went. A pure function; what it is used for is in ``watch``."""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int, highest: float | None = None) -> str:
    """The last ``width`` columns' worth of ``values``, from 0 to ``highest`` (default: the highest of them).

    Several values share a column if there are more of them than columns: the highest is shown. A column without any
    value is blank. Never longer than ``width``, and shorter if there are fewer values.
    """
    columns = _columns(values, width)
    top = highest if highest is not None else max((value for value in columns if value is not None), default=0.0)
    return "".join(" " if value is None else _block(value, top) for value in columns)


def _columns(values: Sequence[float | None], width: int) -> list[float | None]:
    count = len(values)
    if width <= 0 or count == 0:
        return []
    if count <= width:
        return list(values)
    found: list[float | None] = []
    for column in range(width):
        share = values[column * count // width : (column + 1) * count // width]
        found.append(max((value for value in share if value is not None), default=None))
    return found


def _block(value: float, top: float) -> str:
    if top <= 0 or value <= 0:
        return BLOCKS[0]
    return BLOCKS[min(len(BLOCKS) - 1, int(value / top * (len(BLOCKS) - 1) + 0.5))]
