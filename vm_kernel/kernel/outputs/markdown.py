"""Markdown of a guest, rendered here: a front end's own renderer passes raw HTML through.

What comes out is HTML of the sanitiser's making; formulas stay as they are, for MathJax.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from vm_kernel.kernel.outputs.html import sanitised

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

#: characters of Markdown that is rendered; more is shown as text. The worst of them takes the square: two seconds
MAX_MARKDOWN = 50_000


def rendered(text: str) -> str | None:
    """The HTML; None if the text is too long. Raw HTML in it is shown as text."""
    if len(text) > MAX_MARKDOWN:
        return None
    return sanitised(_parser().render(text))


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.amsmath import amsmath_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, double_inline=True, allow_digits=False)
    parser.use(amsmath_plugin)
    for name, (begin, end) in _DELIMITERS.items():
        parser.add_render_rule(name, _formula(begin, end))
    return parser


#: kinds of formulas, and what stands around them
_DELIMITERS = {
    "math_inline": ("$", "$"),
    "math_inline_double": ("$$", "$$"),
    "math_block": ("$$", "$$\n"),
    "math_block_label": ("$$", "$$\n"),
    "amsmath": ("", "\n"),
}


def _formula(begin: str, end: str) -> Any:
    """A rule that writes a formula as it stood in the Markdown."""

    def write(_: Any, tokens: Any, index: int, *__: Any) -> str:
        from markdown_it.common.utils import escapeHtml

        return begin + escapeHtml(tokens[index].content) + end

    return write
