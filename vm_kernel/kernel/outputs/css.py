"""Style that an output may bring: properties that stay within its own box, and values that fetch nothing."""

from __future__ import annotations

import re

#: Not among them: position, margin, transform, z-index, box-shadow, line-height and the like, by which an output can
#: cover what is not its own
PROPERTIES = frozenset(
    "color background background-color font font-family font-size font-style font-variant font-weight text-align "
    "text-decoration text-decoration-color text-decoration-line text-decoration-style text-transform text-overflow "
    "vertical-align white-space word-break overflow-wrap letter-spacing list-style-type width min-width max-width "
    "height min-height max-height padding padding-top padding-right padding-bottom padding-left border border-top "
    "border-right border-bottom border-left border-color border-style border-width border-radius border-collapse "
    "border-spacing border-top-color border-right-color border-bottom-color border-left-color border-top-style "
    "border-right-style border-bottom-style border-left-style border-top-width border-right-width "
    "border-bottom-width border-left-width caption-side table-layout empty-cells display flex flex-direction "
    "flex-wrap flex-grow flex-shrink flex-basis gap justify-content align-items align-self grid-template-columns "
    "overflow overflow-x overflow-y opacity visibility float clear box-sizing cursor tab-size".split()
)
#: functions that fetch something or bring in what we do not see; an escape or a comment may hide one
_FETCHING = re.compile(
    r"\\|/\*|@|<|expression|(?:url|image|image-set|src|element|cross-fade|paint|attr|env)\s*\(", re.IGNORECASE
)
_OWN_REFERENCE = re.compile(r"url\(\s*(['\"]?)#[\w.:-]+\1\s*\)", re.IGNORECASE)


def fetches(value: str) -> bool:
    """True if a value, or a whole style sheet, might fetch something."""
    return _FETCHING.search(value) is not None


def fetches_beyond(value: str) -> bool:
    """The same of SVG, where ``url(#name)`` is the way to name a part of the same picture."""
    return fetches(_OWN_REFERENCE.sub("", value))
