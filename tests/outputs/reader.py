"""Reads what the output policy lets through as a suspicious browser would: with another parser than the sanitiser's."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

#: elements that run, fetch, submit or change how the rest is read; all of foreign vocabularies
ACTIVE = frozenset(
    "script style iframe frame frameset object embed applet form input button textarea select option svg math link "
    "meta base title noscript template xmp plaintext noembed noframes audio video source track canvas dialog marquee "
    "portal slot".split()
)
#: attributes that may be there at all
ATTRIBUTES = frozenset(
    "title lang dir align valign href alt width height src span open value start type reversed max border "
    "cellpadding cellspacing colspan rowspan headers scope abbr datetime style class rel target".split()
)
_FRAME = re.compile(
    r'<div style="height:\d+px;width:100%;resize:vertical;overflow:hidden">'
    r'<iframe sandbox="allow-scripts" referrerpolicy="no-referrer" title="[\w ,]+" style="[\w:;%-]+" '
    r'srcdoc="&lt;!DOCTYPE html&gt;&lt;meta charset=&quot;utf-8&quot;&gt;&lt;meta http-equiv=&quot;'
    r'Content-Security-Policy&quot; content=&quot;default-src \'none\';[^"<>]*"></iframe></div>'
)


def check_page(html: str) -> None:
    """Raises AssertionError unless HTML is one sandbox frame, or does nothing in a page."""
    if _FRAME.fullmatch(html):
        return
    reader = _Reader(convert_charrefs=True)
    reader.feed(html)
    reader.close()
    assert not re.search(r"\\href(?![a-zA-Z])", re.sub("<[^>]*>", "", html))


def check_picture(svg: str) -> None:
    """Raises AssertionError unless SVG draws and does nothing else."""
    for element in ElementTree.fromstring(svg).iter():
        name = element.tag.rpartition("}")[2]
        assert name.lower() not in ("script", "foreignobject", "a", "iframe", "set", "animate"), name
        for key, value in element.items():
            assert not key.lower().startswith("on"), key
            if key == "href":
                assert value.startswith(("#", "data:image/")), value
                assert not value.startswith("data:image/svg"), value


class _Reader(HTMLParser):
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ACTIVE, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, name
            if name == "href":
                assert re.match("(?i)https?:|mailto:", value or ""), value
            elif name == "src":
                assert (value or "").startswith("data:image/"), value
            elif name == "class":
                assert value == "dataframe", value
            elif name == "style":
                assert not re.search(r"(?i)\burl\(|\bposition\b|\\", value or ""), value
