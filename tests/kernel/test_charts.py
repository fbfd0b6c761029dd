"""The charts of %pool_status: a pure function from samples to SVG."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from vm_kernel.kernel.charts import render

SVG = "{http://www.w3.org/2000/svg}"


def history(**columns: list[Any]) -> dict[str, Any]:
    """A history of three samples, unless told otherwise."""
    usual: dict[str, list[Any]] = {
        "warm": [2, 1, 2], "leased": [0, 1, 3], "waiting": [0, 0, 1], "host_mib": [9000, 8000, 8500],
        "own_mib": [120, 180, 240], "acquire_ms": [None, 0.9, 1500.0],
    }  # fmt: skip
    return {"every_s": 60.0} | usual | columns


def texts(svg: str) -> str:
    return " ".join("".join(element.itertext()) for element in ElementTree.fromstring(svg).iter(f"{SVG}text"))


def test_a_picture_has_four_panels_with_their_latest_values() -> None:
    words = texts(render(history()))
    for title in ("VMs", "Longest acquire", "Memory the host can give", "Memory VMs have for themselves"):
        assert title in words
    for value in ("leased 3", "warm 2", "waiting 1", "last 1.5 s", "8.3 GiB", "240 MiB", "2 min ago", "now"):
        assert value in words


def test_it_says_in_words_what_it_shows() -> None:
    root = ElementTree.fromstring(render(history()))
    words = "The pool in the last 2 min: warm 2, leased 3, waiting 1; longest acquire 1.5 s; "
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"].startswith(words)
    assert (root.findtext(f"{SVG}title") or "").startswith(words)


def test_it_stands_alone_and_fits_any_theme() -> None:
    svg = render(history())
    names = {element.tag.removeprefix(SVG) for element in ElementTree.fromstring(svg).iter()}
    assert names == {"svg", "title", "text", "tspan", "line", "path", "polygon", "polyline"}
    assert svg.count("http") == 1, "the name space, and no reference"
    assert "style" not in svg
    assert 'fill="currentColor"' in svg
    assert not {"#000", "#fff", "black", "white"} & set(svg.split('"'))


def test_values_are_drawn_inside_their_panels() -> None:
    svg = render(history(own_mib=[0, 1e9, 5], acquire_ms=[0.00001, 1e9, None], leased=[0, 10**6, 3]))
    root = ElementTree.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for path in root.iter(f"{SVG}path"):
        assert "e" not in path.attrib["d"]
        numbers = [float(number) for number in re.findall(r"[\d.-]+", path.attrib["d"])]
        assert all(0 <= number <= width for number in numbers)
    for shape in root.iter(f"{SVG}polyline"):
        points = [tuple(map(float, point.split(","))) for point in shape.attrib["points"].split()]
        assert all(0 <= x <= width and height / 2 <= y <= height for x, y in points)


@pytest.mark.parametrize("count", [2, 3, 300])
def test_any_number_of_samples_makes_a_picture_of_bounded_size(count: int) -> None:
    columns = {name: [n * 7919 % 1000 for n in range(count)] for name in history() if name != "every_s"}
    svg = render(history(**columns))
    ElementTree.fromstring(svg)
    assert len(svg) < 40_000


@pytest.mark.parametrize(
    "columns",
    [
        {"warm": [None, "x", math.nan]},
        {"host_mib": [None] * 3, "own_mib": [-1, math.inf, True]},
        {"acquire_ms": [None] * 3},
        {name: [0] * 3 for name in ("warm", "leased", "waiting", "host_mib", "own_mib", "acquire_ms")},
    ],
)
def test_values_that_are_missing_or_none_are_left_out(columns: dict[str, list[Any]]) -> None:
    ElementTree.fromstring(render(history(**columns)))


@pytest.mark.parametrize("samples", [{}, {"every_s": 2.0}, history(warm=[]), history(warm=[1]), history(warm=None)])  # type: ignore[arg-type]
def test_without_samples_there_is_no_picture(samples: dict[str, Any]) -> None:
    assert render(samples) == ""
