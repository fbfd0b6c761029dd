"""The pool's last minutes as one SVG picture: a pure function from samples to text, made on the host.

It has no script, no style sheet and no reference to anything outside. Text takes the colour of the page around it
and lines have colours that can be told from a white and from a black ground, so that it fits any theme.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

#: of one of the four panels, in pixels, and of the room around its plot
WIDTH, HEIGHT = 370, 132
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 38, 20
GREEN, BLUE, ORANGE, PURPLE = "#2f9e44", "#3d87e0", "#d9730d", "#9a63d3"

Values = Sequence[float | None]


class Line(NamedTuple):
    """One series. name: in the legend, before its latest value; dash: SVG's, so that colour is not all there is."""

    name: str
    values: Values
    colour: str
    width: float = 1.8
    dash: str = ""


class _Frame(NamedTuple):
    """Where a panel is, and how its values become heights."""

    x: float
    y: float
    samples: int
    top: float
    scale: Callable[[float], float]

    def at(self, index: float, value: float) -> tuple[float, float]:
        """The point of the value of a sample."""
        share = min(1.0, max(0.0, self.scale(value) / (self.scale(self.top) or 1.0)))
        width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        across = index / max(1, self.samples - 1)
        return self.x + LEFT + across * width, self.y + TOP + (1.0 - share) * height


def render(history: dict[str, Any]) -> str:
    """``<svg>…</svg>`` of what the status has under ``history``; empty if there are fewer than two samples."""
    columns = {name: _numbers(history.get(name)) for name in _COLUMNS}
    count = min(map(len, columns.values()))
    if count < 2:
        return ""
    columns = {name: values[-count:] for name, values in columns.items()}
    seconds = (count - 1) * float(history.get("every_s") or 0)
    alt = f"The pool in the last {_ago(seconds)}: {_in_words(columns)}"
    panels = [
        _vms(columns, 0, 0, seconds),
        _acquires(columns, WIDTH, 0, seconds),
        _memory("Memory the host can give", columns["host_mib"], GREEN, 0, HEIGHT, seconds),
        _memory("Memory VMs have for themselves", columns["own_mib"], PURPLE, WIDTH, HEIGHT, seconds),
    ]
    size = f'width="{2 * WIDTH}" height="{2 * HEIGHT}" viewBox="0 0 {2 * WIDTH} {2 * HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{html.escape(alt)}" '
        f'font-family="sans-serif" font-size="11" fill="currentColor"><title>{html.escape(alt)}</title>'
        f"{''.join(panels)}</svg>"
    )


_COLUMNS = ("warm", "leased", "waiting", "host_mib", "own_mib", "acquire_ms")


# ---- the panels


def _vms(columns: dict[str, list[float | None]], x: float, y: float, seconds: float) -> str:
    lines = [
        Line("leased", columns["leased"], BLUE, 2.6),
        Line("warm", columns["warm"], GREEN, 1.6),
        Line("waiting", columns["waiting"], ORANGE, 1.6, "4 2"),
    ]
    highest = max((value for line in lines for value in line.values if value is not None), default=1.0)
    frame = _Frame(x, y, len(lines[0].values), _round_up(max(highest, 1.0), (1, 2, 4, 5, 10)), float)
    drawn = "".join(_stepped(frame, line) for line in lines)
    return _panel(frame, "VMs", lines, _count, seconds) + drawn


def _acquires(columns: dict[str, list[float | None]], x: float, y: float, seconds: float) -> str:
    """On a logarithmic scale from 0.1 ms: a warm VM takes one, a golden snapshot that must be built first 30,000."""
    line = Line("last", columns["acquire_ms"], BLUE)
    known = [value for value in line.values if value is not None]
    top = 10.0 ** math.ceil(math.log10(max([*known, 10.0])))
    frame = _Frame(x, y, len(line.values), top, lambda value: math.log10(max(value, 0.1)) + 1.0)
    marks = _stems(frame, line)
    middle = 10.0 ** round((math.log10(top) - 1.0) / 2.0)
    return _panel(frame, "Longest acquire", [line], _ms, seconds, floor=0.1, middle=middle) + marks


def _memory(title: str, values: list[float | None], colour: str, x: float, y: float, seconds: float) -> str:
    line = Line("", values, colour)
    highest = max((value for value in values if value is not None), default=16.0)
    unit = 1024.0 if highest >= 1024 else 1.0
    top = unit * _round_up(max(highest, 16.0) / unit, (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10))
    frame = _Frame(x, y, len(values), top, float)
    points = [frame.at(index, value) for index, value in enumerate(values) if value is not None]
    if not points:
        return _panel(frame, title, [line], _mib, seconds)
    edge = " ".join(f"{_n(px)},{_n(py)}" for px, py in points)
    base = frame.at(0, 0.0)[1]
    area = f"{_n(points[0][0])},{_n(base)} {edge} {_n(points[-1][0])},{_n(base)}"
    drawn = (
        f'<polygon points="{area}" fill="{colour}" fill-opacity="0.18"/>'
        f'<polyline points="{edge}" fill="none" stroke="{colour}" stroke-width="{line.width}"/>'
    )
    return _panel(frame, title, [line], _mib, seconds) + drawn


def _panel(
    frame: _Frame,
    title: str,
    lines: list[Line],
    say: Callable[[float], str],
    seconds: float,
    floor: float = 0.0,
    middle: float | None = None,
) -> str:
    """What is around the data: title, legend with the latest values, two or three grid lines, the time."""
    left, right = frame.x + LEFT, frame.x + WIDTH - RIGHT
    parts = [f'<text x="{_n(left)}" y="{_n(frame.y + 14)}" font-weight="bold">{html.escape(title)}</text>']
    legend = "".join(
        f'<tspan fill="{line.colour}">{"● " if not line.dash else "┅ "}</tspan>{html.escape(line.name)} '
        f"<tspan>{_latest(line.values, say)}</tspan>{'  ' if line.name else ''}"
        for line in lines
    )
    parts.append(f'<text x="{_n(left)}" y="{_n(frame.y + 29)}" fill-opacity="0.85">{legend}</text>')
    for value in [floor, *([middle] if middle is not None else []), frame.top]:
        y = frame.at(0, value)[1]
        parts.append(
            f'<line x1="{_n(left)}" x2="{_n(right)}" y1="{_n(y)}" y2="{_n(y)}" stroke="currentColor" '
            f'stroke-opacity="0.22"/><text x="{_n(left - 6)}" y="{_n(y + 4)}" text-anchor="end" '
            f'fill-opacity="0.7">{say(value)}</text>'
        )
    below = frame.y + HEIGHT - 5
    parts.append(f'<text x="{_n(left)}" y="{_n(below)}" fill-opacity="0.7">{_ago(seconds)} ago</text>')
    parts.append(f'<text x="{_n(right)}" y="{_n(below)}" text-anchor="end" fill-opacity="0.7">now</text>')
    return "".join(parts)


# ---- marks


def _stepped(frame: _Frame, line: Line) -> str:
    """A count: it stays until it changes."""
    path, last = "", None
    for index, value in enumerate(line.values):
        if value is None or (value == last and index < len(line.values) - 1):
            continue
        x, y = frame.at(index, value)
        path += f"H{_n(x)}V{_n(y)}" if path else f"M{_n(x)} {_n(y)}"
        last = value
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    return f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="{line.width}"{dash}/>' if path else ""


def _stems(frame: _Frame, line: Line) -> str:
    """Single events: a dot each, and a line that leads to its time. Two paths, however many there are."""
    stems = dots = ""
    for index, value in enumerate(line.values):
        if value is not None:
            x, y = frame.at(index, value)
            stems += f"M{_n(x)} {_n(frame.at(index, 0.1)[1])}V{_n(y)}"
            dots += f"M{_n(x)} {_n(y)}h0"
    return (
        f'<path d="{stems}" stroke="{line.colour}" stroke-opacity="0.5"/>'
        f'<path d="{dots}" stroke="{line.colour}" stroke-width="5" stroke-linecap="round"/>'
    )


# ---- numbers


def _round_up(value: float, steps: Sequence[float]) -> float:
    """The next of these steps, times a power of ten: as a scale's end. The last step is ten."""
    unit = 10.0 ** math.floor(math.log10(value))
    return next((step * unit for step in steps if step * unit >= value), 10.0 * unit)


def _numbers(values: object) -> list[float | None]:
    if not isinstance(values, list):
        return []
    return [float(v) if isinstance(v, int | float) and math.isfinite(v) and v >= 0 else None for v in values]


def _in_words(columns: dict[str, list[float | None]]) -> str:
    counts = ", ".join(
        f"{name} {_latest(columns[name], lambda v: f'{v:.0f}')}" for name in ("warm", "leased", "waiting")
    )
    longest = max((value for value in columns["acquire_ms"] if value is not None), default=None)
    acquire = f"; longest acquire {_ms(longest)}" if longest is not None else ""
    host, own = (_latest(columns[name], _mib) for name in ("host_mib", "own_mib"))
    return f"{counts}{acquire}; the host can give {host}, VMs have {own} for themselves."


def _latest(values: Values, say: Callable[[float], str]) -> str:
    last = next((value for value in reversed(values) if value is not None), None)
    return "–" if last is None else say(last)


def _count(value: float) -> str:
    return f"{value:.0f}"


def _ms(value: float) -> str:
    return f"{value / 1000:g} s" if value >= 1000 else f"{value:.3g} ms"


def _mib(value: float) -> str:
    return f"{value / 1024:.3g} GiB" if value >= 1024 else f"{value:.0f} MiB" if value else "0"


def _ago(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


def _n(value: float) -> str:
    """A coordinate, in few characters."""
    return f"{value:.1f}".removesuffix(".0")
