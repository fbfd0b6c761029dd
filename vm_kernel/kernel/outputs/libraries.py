"""Scripts in frames share nothing; so what they need of earlier outputs is kept here and put into their frames.

plotly's ``notebook`` renderer and Bokeh's ``output_notebook()`` put a library into the page once, as an output of
its own; and Bokeh displays a chart as an empty element and, in another output of the same cell, the script for it.
"""

from __future__ import annotations

import re

from vm_kernel.kernel.outputs.frame import MAX_FRAME

#: by the name that a script uses: how to tell the library itself
_LIBRARIES = {
    "Plotly": re.compile(r"plotly\.js v\d|Plotly\.register|PlotlyConfig"),
    "Bokeh": re.compile(r"bokeh\.org|BokehJS|Bokeh\.set_log_level"),
}
#: characters that a script has which is a library, at the least
_LIBRARY_SIZE = 100_000
#: characters of HTML without scripts that is remembered for a script of the same cell
_MAX_ELEMENTS = 20_000

_SCRIPT = re.compile(r"<script\b", re.IGNORECASE)


class Libraries:
    """Of one session."""

    def __init__(self) -> None:
        self._scripts: dict[str, str] = {}
        self._cell = ""
        self._elements = ""

    def keep(self, html: str) -> bool:
        """Remember HTML that is a library and nothing to look at. False if it is anything else."""
        if not _LIBRARY_SIZE <= len(html) <= MAX_FRAME or not _only_scripts(html):
            return False
        for name, sign in _LIBRARIES.items():
            if sign.search(html):
                self._scripts[name] = html
                return True
        return False

    def note_elements(self, cell: str, html: str) -> None:
        """A cell has displayed HTML without scripts: what a later output of it fills may be in there."""
        before = self._elements if cell == self._cell else ""
        self._cell, self._elements = cell, (before + html)[-_MAX_ELEMENTS:]

    def needed(self, script: str) -> str:
        """What goes ahead of a script."""
        return "".join(text for name, text in self._scripts.items() if name in script)

    def elements(self, cell: str) -> str:
        """The HTML that a cell has displayed before."""
        return self._elements if cell == self._cell else ""


def _only_scripts(html: str) -> bool:
    """True if nothing but scripts is in it."""
    at = 0
    while (found := _SCRIPT.search(html, at)) is not None:
        end = html.find("</script>", found.end())
        if html[at : found.start()].strip() or end < 0:
            return False
        at = end + len("</script>")
    return at > 0 and not html[at:].strip()
