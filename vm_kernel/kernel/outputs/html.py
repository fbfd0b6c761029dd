"""HTML of a guest: what of it can stand in the page itself.

The sanitiser (nh3) parses as a browser does and builds the text anew from a list of harmless elements and attributes.
If that takes nothing away but what only decorates, the result is shown in the page; else the whole goes into a frame.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vm_kernel.kernel.outputs import css, tex

if TYPE_CHECKING:
    from nh3 import Cleaner

#: characters and elements of HTML that is sanitised: deep nesting costs the square of it (20,000 elements: 1.4 s)
MAX_INLINE = 4_000_000
MAX_ELEMENTS = 20_000
#: characters of style sheets times elements that they are matched against, at most (a second's work, about)
MAX_MATCHING = 600_000_000

TAGS = frozenset(
    "a abbr b bdi bdo big blockquote br caption center cite code col colgroup dd del details dfn div dl dt em "
    "figcaption figure h1 h2 h3 h4 h5 h6 hr i img ins kbd li mark ol p pre progress q rp rt ruby s samp section small "
    "span strike strong sub summary sup table tbody td tfoot th thead time tr tt u ul var".split()
)
#: elements whose loss nobody sees
_SHELL = frozenset({"html", "head", "body", "wbr", "!doctype", "article", "header", "footer", "main", "font"})
_ATTRIBUTES = frozenset({"title", "lang", "dir", "align", "valign"})
_ATTRIBUTES_OF = {
    "a": frozenset({"href"}),
    "col": frozenset({"span", "width"}),
    "colgroup": frozenset({"span", "width"}),
    "details": frozenset({"open"}),
    "img": frozenset({"alt", "width", "height", "src"}),
    "li": frozenset({"value"}),
    "ol": frozenset({"start", "type", "reversed"}),
    "progress": frozenset({"value", "max"}),
    "table": frozenset({"border", "cellpadding", "cellspacing", "width"}),
    "td": frozenset({"colspan", "rowspan", "width", "height", "headers"}),
    "th": frozenset({"colspan", "rowspan", "width", "height", "headers", "scope", "abbr"}),
    "time": frozenset({"datetime"}),
}
#: classes that mean something in an output and nothing to Lab's interface: it styles tables of this one
_CLASSES = frozenset({"dataframe"})
#: attributes whose loss is no reason for a frame, besides those that only scripts read (data-*, aria-*)
_DECORATION = frozenset(
    "class id style name role tabindex rel target bgcolor color face size cite char halign nowrap summary frame rules "
    "loading decoding slot part hidden translate xmlns is".split()
)
_LINK = re.compile(r"https?://[^\s\\]+|mailto:[^\s\\]+", re.IGNORECASE)
#: the address of a picture that is fetched from nowhere
PICTURE = re.compile(r"data:image/(?:png|jpeg|jpg|gif|webp);base64,[A-Za-z0-9+/=\s]*")
_TAG = re.compile(r"<([a-z!][^\s/>]*)", re.IGNORECASE)
_STYLE_SHEET = re.compile(r"<style\b[^<>]*>([^<]*)</style\s*>", re.IGNORECASE)
#: looks at all siblings or all descendants of an element
_SLOW_SELECTOR = re.compile(r"~|:has\(")
_SCOPED_SHEET = re.compile(r"<style\s+scoped\s*>[^<]*</style\s*>", re.IGNORECASE)


def inline(html: str) -> str | None:
    """The HTML as it can stand in the page. None if that would lose more than decoration, or take too long."""
    if len(html) > MAX_INLINE or html.count("<") - html.count("</") > MAX_ELEMENTS:
        return None
    html = _SCOPED_SHEET.sub("", html)
    if "<style" in html.lower():
        if (styled := _with_style_attributes(html)) is None:
            return None
        html = styled
    if not {name.lower() for name in _TAG.findall(html) if name[:3] != "!--"} <= TAGS | _SHELL:
        return None
    return sanitised(html, strict=True)


def sanitised(html: str, strict: bool = False) -> str | None:
    """The HTML without anything that is not known to be harmless. strict: None if more than decoration is lost."""
    losses = _Losses()
    clean = _cleaner(losses).clean(html)
    text = re.sub("<[^>]*>", "", clean)
    if tex.is_active(text) or tex.is_active(clean):
        return None if strict else tex.defused(clean)
    return None if strict and losses.any else clean


class _Losses:
    """Decides about attributes, and notes whether one has gone that did more than decorate."""

    def __init__(self) -> None:
        self.any = False

    def __call__(self, tag: str, name: str, value: str) -> str | None:
        kept = _kept(tag, name, value)
        if kept is None and not (name in _DECORATION or name.startswith(("data-", "aria-"))):
            self.any = True
        return kept


def _kept(tag: str, name: str, value: str) -> str | None:
    """The value that an attribute may have; None: it goes."""
    if name == "style":
        return None if css.fetches(value) else value
    if name == "class":
        return " ".join(part for part in value.split() if part in _CLASSES) or None
    if name not in _ATTRIBUTES and name not in _ATTRIBUTES_OF.get(tag, ()):
        return None
    if name == "href":
        return value if _LINK.fullmatch(value.strip()) else None
    if name == "src":
        return value if PICTURE.fullmatch(value) else None
    return value


def _cleaner(losses: _Losses) -> Cleaner:
    from nh3 import Cleaner

    return Cleaner(
        tags=set(TAGS),
        # every attribute is asked about; those with odd names go at once
        generic_attribute_prefixes=set("abcdefghijklmnopqrstuvwxyz"),
        attributes={"a": {"href"}, "img": {"src"}},
        attribute_filter=losses,
        filter_style_properties=set(css.PROPERTIES),
        url_schemes={"http", "https", "mailto", "data"},
        url_relative="deny",
        link_rel="noopener noreferrer",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


def _with_style_attributes(html: str) -> str | None:
    """Tables with a style sheet, as pandas' Styler and polars make them: its rules as attributes of the elements.

    None for HTML that is more than tables: what a style sheet does there, attributes would not do.
    """
    sheets = _STYLE_SHEET.findall(html)
    body = _STYLE_SHEET.sub("", html)
    lower = body.lower()
    if "<table" not in lower or "<style" in lower or "<link" in lower:
        return None
    sheet = "\n".join(sheets)
    if len(sheet) * lower.count("<") > MAX_MATCHING or _SLOW_SELECTOR.search(sheet):
        return None
    from css_inline import CSSInliner, InlineError

    try:
        return CSSInliner(load_remote_stylesheets=False).inline_fragment(body, sheet)
    except (InlineError, ValueError):  # a style sheet that it cannot read
        return None
