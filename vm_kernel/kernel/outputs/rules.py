"""One MIME bundle at a time: what of it clients get, under the policy of the session.

Under ``isolated`` and ``static`` a bundle is built anew from the types below; what is not known here is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from vm_kernel.kernel.outputs import frame, html, markdown, svg, tex
from vm_kernel.kernel.outputs.libraries import Libraries

#: the policies; see SECURITY.md
ISOLATED, STATIC, TRUSTED = "isolated", "static", "trusted"

#: types whose text is base64, and that front ends show without looking into them
_BASE64_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/bmp", "application/pdf"})
_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]*")
_SCRIPTS = ("application/javascript", "text/javascript", "application/ecmascript", "text/ecmascript")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
#: types that only repeat what another type of the bundle shows
_COMPANIONS = ("application/vnd.bokehjs_exec", "application/vnd.bokehjs_load", "application/vnd.holoviews")
#: types whose text says about the same
_HAVE_TEXT = ("text/html", "text/markdown", "text/latex", "image/svg+xml")
#: types that a word about them names
_NAMED = 5
#: what of a type's metadata is passed on, if it is a number or a truth value
_METADATA = frozenset({"width", "height", "unconfined", "needs_background", "expanded"})

Data = dict[str, Any]


class Rules:
    """Those of one session. ``policy`` may change when another VM is leased."""

    def __init__(self, policy: str = ISOLATED) -> None:
        self.policy = policy
        self._libraries = Libraries()
        #: tells whether a widget of that model id may be shown
        self.shows_widget: Callable[[str], bool] = lambda model_id: False

    def bundle(self, data: object, metadata: object, cell: str = "") -> tuple[Data, Data]:
        """A MIME bundle and its metadata. cell: message id of the request that it belongs to."""
        given = data if isinstance(data, dict) else {}
        made = {mime: shown for mime, value in given.items() if (shown := self._shown(mime, value)) is not None}
        if self.policy == ISOLATED and (page := self._as_html(given, cell)) is not None:
            made["text/html"] = page
        if not made.keys() - {"text/plain"}:
            _add_text(given, made, self.policy)
        return made, _kept_metadata(metadata, made)

    def output(self, output: object) -> Data | None:
        """An output as notebooks keep it, of an Output widget. None: it is not shown."""
        if not isinstance(output, dict):
            return None
        kind = output.get("output_type")
        if kind == "stream":
            return {"output_type": kind, **stream(output)}
        if kind == "error":
            return {"output_type": kind, **error(output)}
        if kind not in ("display_data", "execute_result"):
            return None
        data, metadata = self.bundle(output.get("data"), output.get("metadata"))
        made = {"output_type": kind, "data": data, "metadata": metadata}
        return made | {"execution_count": _number(output.get("execution_count"))} if kind == "execute_result" else made

    def html(self, value: object) -> str | None:
        """HTML as it may stand in the page, in a frame if need be. None: not at all."""
        text = as_text(value)
        if text is None:
            return None
        inline = html.inline(text)
        return inline if inline is not None else self._framed(text)

    def _shown(self, mime: str, value: object) -> object:
        """The value of a type that passes by itself; None: it does not."""
        if mime == "application/json":
            return value
        if mime == WIDGET_VIEW:
            return self._widget_view(value)
        text = as_text(value)
        if text is None:
            return None
        if mime == "text/plain":
            return text
        if mime in _BASE64_TYPES:
            return text if _BASE64.fullmatch(text) else None
        if mime == "image/svg+xml":
            return svg.sanitised(text)
        if mime == "text/latex":
            return None if tex.is_active(text) else text
        return None

    def _widget_view(self, value: object) -> object:
        model_id = value.get("model_id") if isinstance(value, dict) else None
        if self.policy != ISOLATED or not isinstance(model_id, str) or not self.shows_widget(model_id):
            return None
        return {"model_id": model_id, "version_major": 2, "version_minor": 0}

    def _as_html(self, given: Data, cell: str) -> str | None:
        """What HTML, Markdown and scripts of a bundle become, in that order of preference. None: they are not shown."""
        page, text = as_text(given.get("text/html")), as_text(given.get("text/markdown"))
        script = next((found for mime in _SCRIPTS if (found := as_text(given.get(mime))) is not None), None)
        if script is not None:
            return self._script(page or "", script, cell)
        if page is not None:
            return self._page(page, cell)
        return markdown.rendered(text) if text is not None else None

    def _page(self, text: str, cell: str) -> str | None:
        if self._libraries.keep(text):
            return ""
        inline = html.inline(text)
        if inline is None:
            return self._framed(text)
        self._libraries.note_elements(cell, text)
        return inline

    def _framed(self, text: str) -> str | None:
        return frame.framed(text, self._libraries.needed(text))

    def _script(self, page: str, script: str, cell: str) -> str | None:
        """A script runs in a frame, with the HTML that came with it or before it in the same cell."""
        tagged = f"<script>{script}</script>"
        if self._libraries.keep(tagged):
            return page and html.inline(page)
        around = page or self._libraries.elements(cell)
        element = '<div id="output"></div><script>const element = document.getElementById("output")</script>'
        return frame.framed(f"{around}{element}{tagged}", self._libraries.needed(script))


def as_text(value: object) -> str | None:
    """The text of a bundle's value: a string, or a list of them as in notebook files."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "".join(value)
    return value if isinstance(value, str) else None


def stream(content: Data) -> Data:
    """Printed text."""
    name = content.get("name")
    return {"name": "stderr" if name == "stderr" else "stdout", "text": as_text(content.get("text")) or ""}


def error(content: Data) -> Data:
    """An exception; front ends show its traceback as text with colours."""
    lines = content.get("traceback")
    return {
        "ename": str(content.get("ename", "")),
        "evalue": str(content.get("evalue", "")),
        "traceback": [line for line in lines if isinstance(line, str)] if isinstance(lines, list) else [],
    }


def _add_text(given: Data, made: Data, policy: str) -> None:
    """Nothing but text is left of a bundle: let the text say as much as it can, and that there was more."""
    plain = made.get("text/plain", "")
    source = next((found for mime in ("text/markdown", "text/latex") if (found := as_text(given.get(mime)))), None)
    if source is not None and (not plain or plain.startswith("<IPython.core.display.")):
        made["text/plain"] = plain = source
    missed = sorted(mime[:80] for mime in given if mime not in made and not mime.startswith(_COMPANIONS))
    if plain:
        missed = [mime for mime in missed if mime not in _HAVE_TEXT]
    if missed or (given and not plain):
        names = ", ".join(missed[:_NAMED]) or "this"
        note = f"[vm-kernel: {names} not shown under the output policy {policy!r}; see PoolConfig.outputs]"
        made["text/plain"] = f"{plain}\n{note}" if plain else note


def _kept_metadata(metadata: object, made: Data) -> Data:
    if not isinstance(metadata, dict):
        return {}
    kept: Data = {}
    for mime in made:
        own = metadata.get(mime)
        if isinstance(own, dict):
            kept[mime] = {key: value for key, value in own.items() if key in _METADATA and _is_scalar(value)}
    return kept | {key: value for key, value in metadata.items() if key in _METADATA and _is_scalar(value)}


def _is_scalar(value: object) -> bool:
    return isinstance(value, bool | int | float)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None
