"""The sandboxed frame: where HTML and scripts run that a front end must not run itself.

A frame with ``sandbox="allow-scripts"`` has an opaque origin: no cookies, no storage, no way to the page around it.
It may still navigate itself, which is a request. So it sits in another such frame, whose content security policy
allows no frame that is fetched (``frame-src 'none'``); what is inside inherits the policy, whatever it says itself.
Source: HTML standard, sandboxing flags and policy containers; CSP Level 3, frame-src.
"""

from __future__ import annotations

import re
from html import escape

#: characters of HTML that a frame may have; plotly.js takes five million
MAX_FRAME = 16_000_000
#: characters of it once it is escaped, twice
MAX_ESCAPED = 48_000_000

#: nothing is fetched; scripts and styles run as they lie in the frame
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob: data:; style-src 'unsafe-inline' data: blob:; "
    "img-src data: blob:; font-src data: blob:; media-src data: blob:; worker-src blob: data:; "
    "connect-src data: blob:; frame-src 'none'; object-src 'none'; base-uri 'none'; form-action 'none'; webrtc 'block'"
)
_AROUND = (
    f'<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    "<style>html,body{margin:0;height:100%;overflow:hidden}iframe{border:0;width:100%;height:100%;display:block}</style>"
    '<iframe sandbox="allow-scripts" referrerpolicy="no-referrer" srcdoc="'
)
_INSIDE = (
    '<!DOCTYPE html><meta charset="utf-8">'
    "<style>html{background:#fff;color:#000;font:13px/1.4 system-ui,sans-serif}body{margin:4px}</style><body>"
)
_BOX = '<div style="height:{height}px;width:100%;resize:vertical;overflow:hidden">'
_FRAME = (
    '<iframe sandbox="allow-scripts" referrerpolicy="no-referrer" title="Output of a cell, in a sandbox" '
    'style="border:0;width:100%;height:100%;display:block" srcdoc="'
)

#: heights in px: of what says nothing about it, without and with a script, and the bounds; what the frame adds
HEIGHT, SCRIPT_HEIGHT, MIN_HEIGHT, MAX_HEIGHT, MARGIN = 200, 400, 60, 1200, 24
#: characters in which a height is looked for, at either end
_LOOK = 200_000
_HEIGHTS = re.compile(
    r"""(?<![\w-])height\s*:\s*(\d{2,4})(?:\.\d+)?px|\sheight\s*=\s*["']?(\d{2,4})(?:px)?["'\s>]|"height"\s*:\s*(\d{2,4})\b"""
)


def framed(html: str, libraries: str = "") -> str | None:
    """HTML that shows ``html`` in a frame, with the scripts that it needs ahead of it. None if it is too long."""
    if len(html) + len(libraries) > MAX_FRAME:
        return None
    inside = _escaped(_escaped(_INSIDE + libraries + html))
    if len(inside) > MAX_ESCAPED:
        return None
    box = _BOX.format(height=_height(html))
    return f"{box}{_BEGIN}{inside}{_END}"


def _escaped(text: str) -> str:
    """For an attribute in double quotes; angle brackets as well, for readers that are not browsers."""
    return escape(text, quote=False).replace('"', "&quot;")


#: what stands before and after what is inside
_BEGIN, _END = _FRAME + _escaped(_AROUND), _escaped('"></iframe>') + '"></iframe></div>'


def _height(html: str) -> int:
    """A frame cannot grow with its content, so it gets the largest height that the content speaks of."""
    found = _HEIGHTS.findall(html[:_LOOK] + html[_LOOK:][-_LOOK:])
    heights = [int(next(filter(None, groups))) for groups in found]
    if not heights:
        return SCRIPT_HEIGHT if "<script" in html.lower() else HEIGHT
    return max(MIN_HEIGHT, min(MAX_HEIGHT, max(heights) + MARGIN))
