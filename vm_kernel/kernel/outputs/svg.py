"""SVG of a guest: rebuilt from elements that draw. Front ends show it as a picture; exports may inline it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vm_kernel.kernel.outputs import css
from vm_kernel.kernel.outputs.html import PICTURE

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

#: characters of a picture, and elements in it
MAX_SVG = 8_000_000
MAX_ELEMENTS = 200_000

_NAMESPACE = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}"
TAGS = frozenset(
    "svg g path rect circle ellipse line polyline polygon text tspan textPath defs clipPath use linearGradient "
    "radialGradient stop marker mask pattern symbol title desc image style filter feGaussianBlur feOffset feBlend "
    "feColorMatrix feComposite feFlood feMerge feMergeNode switch view".split()
)
_NAME = re.compile(r"[A-Za-z][\w.-]*")
_OWN_PART = re.compile(r"#[^\s\"'<>]*")


def sanitised(text: str) -> str | None:
    """The picture without scripts, links and anything that is fetched. None if it is none, or too large."""
    if len(text) > MAX_SVG or text.count("<") > 2 * MAX_ELEMENTS:
        return None
    from xml.etree import ElementTree

    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(text.strip(), forbid_entities=True, forbid_external=True)
        if _local(root.tag) != "svg":
            return None
        clean = _rebuilt(root)
        return ElementTree.tostring(clean, encoding="unicode")
    except (ElementTree.ParseError, DefusedXmlException, ValueError, RecursionError):
        return None


def _local(tag: object) -> str:
    """The name of an element of SVG; empty for comments, instructions and elements of anything else."""
    if not isinstance(tag, str):
        return ""
    space, brace, name = tag.rpartition("}")
    return name if not brace or space == "{" + _NAMESPACE else ""


def _rebuilt(element: Element) -> Element:
    name = _local(element.tag)
    kept = (_attribute(key, value) for key, value in element.items())
    made = element.makeelement(name, {key: value for key, value in kept if key})
    if name == "svg":
        made.set("xmlns", _NAMESPACE)
    made.text, made.tail = element.text, element.tail
    if name == "style" and css.fetches_beyond(element.text or ""):
        made.text = ""
    for child in element:
        if _local(child.tag) in TAGS:
            made.append(_rebuilt(child))
    return made


def _attribute(key: str, value: str) -> tuple[str, str]:
    """An attribute as it may stay; an empty name: it may not."""
    key = key.removeprefix(_XLINK)
    if key == "href":
        return (key, value) if _OWN_PART.fullmatch(value) or PICTURE.fullmatch(value) else ("", "")
    if not _NAME.fullmatch(key) or key.lower().startswith("on") or css.fetches_beyond(value):
        return "", ""
    return key, value
