"""Tables, sizes and durations as host magics show them: as text and as HTML. Pure functions."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

Rows = Sequence[Sequence[object]]


def text_table(title: str, columns: Sequence[str], rows: Rows) -> str:
    """Columns of text; without a head if no column has a name."""
    head = [columns] if any(columns) else []
    lines = [[_cell(value) for value in row] for row in [*head, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    return f"{title}\n{text}" if title else text


def html_table(title: str, columns: Sequence[str], rows: Rows) -> str:
    """The same as an HTML table; everything in it is escaped."""
    caption = f"<caption>{escaped(title)}</caption>" if title else ""
    head = f"<thead><tr>{_html_cells('th', columns)}</tr></thead>" if any(columns) else ""
    if head:
        body = [f"<tr>{_html_cells('td', row)}</tr>" for row in rows]
    else:
        body = [f"<tr>{_html_cells('th', row[:1])}{_html_cells('td', row[1:])}</tr>" for row in rows]
    return f"<table>{caption}{head}<tbody>{''.join(body)}</tbody></table>"


def _html_cells(tag: str, values: Iterable[object]) -> str:
    return "".join(f"<{tag}>{escaped(_cell(value))}</{tag}>" for value in values)


def _cell(value: object) -> str:
    return "–" if value is None else " ".join(str(value).split())


def escaped(text: str) -> str:
    """Text for HTML."""
    return html.escape(text)


def ms(value: float | None) -> str:
    """A duration given in milliseconds."""
    if value is None:
        return "–"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.3g} ms"


def mib(value: float | None) -> str:
    """A size given in MiB."""
    return "–" if value is None else f"{value:,.0f} MiB" if value >= 100 else f"{value:.1f} MiB"


def age(seconds: float | None) -> str:
    """A duration given in seconds."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
