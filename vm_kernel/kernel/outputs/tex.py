"""TeX that a front end hands to MathJax: which of it does more than show a formula."""

from __future__ import annotations

import re

#: Commands that make links, set classes, styles and attributes, load extensions, or define commands (which could spell
#: one of these). Source: MathJax's documentation of its extensions html, require, unicode, newcommand, mathtools.
_ACTIVE = re.compile(
    r"\\(?:href|url|require|class|cssId|style|data|unicode|mmlToken|csname|html[a-zA-Z]*|include[a-zA-Z]*|input|"
    r"special|toggle|(?:math|text)?tip|[gex]?def|futurelet|let|(?:re)?new[a-zA-Z]+|provide[a-zA-Z]+|Declare[a-zA-Z]+)"
    r"(?![a-zA-Z])"
)
#: looks like a backslash, and is none
_INERT = "\N{SET MINUS}"


def is_active(text: str) -> bool:
    """True if MathJax might do more with the text than show a formula."""
    return "\\" in text and _ACTIVE.search(text) is not None


def defused(text: str) -> str:
    """The text with such commands spelled so that MathJax leaves them alone."""
    return _ACTIVE.sub(lambda found: _INERT + found[0][1:], text) if "\\" in text else text
