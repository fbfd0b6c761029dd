"""A MIME bundle in, the bundle that clients get out: both sides of each rule."""

from __future__ import annotations

from typing import Any

import pytest

from vm_kernel.kernel.outputs.frame import MAX_FRAME
from vm_kernel.kernel.outputs.rules import Rules

FRAME = '<iframe sandbox="allow-scripts"'
PANDAS = """\
<div>
<style scoped>
    .dataframe tbody tr th:only-of-type { vertical-align: middle; }
</style>
<table border="1" class="dataframe"><thead><tr style="text-align: right;"><th></th><th>a</th></tr></thead>
<tbody><tr><th>0</th><td>1</td></tr></tbody></table></div>"""
STYLER = """\
<style type="text/css">
#T_1_row0_col0 { background-color: #ff0000; color: white; position: fixed; }
#T_1 th:hover { color: blue; }
</style>
<table id="T_1"><thead><tr><th class="blank level0" >&nbsp;</th></tr></thead>
<tbody><tr><td id="T_1_row0_col0" class="data row0 col0" >1</td></tr></tbody></table>"""
POLARS = """\
<div><style>.dataframe > thead > tr, .dataframe > tbody > tr > td { text-align: right; white-space: pre-wrap; }</style>
<small>shape: (1, 1)</small><table border="1" class="dataframe"><tbody><tr><td>1</td></tr></tbody></table></div>"""


def shown(data: dict[str, Any], metadata: dict[str, Any] | None = None, policy: str = "isolated") -> dict[str, Any]:
    return Rules(policy).bundle(data, metadata or {})[0]


def page(html: str) -> str:
    """What HTML becomes."""
    return str(shown({"text/html": html})["text/html"])


@pytest.mark.parametrize(
    "data",
    [
        {"text/plain": "42"},
        {"image/png": "aGVsbG8=\n", "text/plain": "<Figure>"},
        {"application/json": {"a": [1, None, "<script>"]}},
        {"application/pdf": "aGVsbG8="},
        {"text/latex": r"$\displaystyle \frac{a}{b}$", "text/plain": "a/b"},
    ],
)
@pytest.mark.parametrize("policy", ["isolated", "static"])
def test_these_pass_as_they_are(data: dict[str, Any], policy: str) -> None:
    assert shown(data, policy=policy) == data


def test_a_table_of_pandas_stays_in_the_page() -> None:
    html = page(PANDAS)
    assert FRAME not in html
    assert '<table border="1" class="dataframe">' in html
    assert "text-align:right" in html
    assert "<style" not in html


def test_the_colours_of_a_styler_become_attributes() -> None:
    html = page(STYLER)
    assert FRAME not in html
    assert "background-color:#ff0000" in html.replace(" ", "")
    assert "position" not in html
    assert "id=" not in html
    assert "text-align:right" in page(POLARS).replace(" ", "")


@pytest.mark.parametrize(
    "html",
    [
        "<p>One <b>two</b> <code>1 &lt; 2</code><br>three</p>",
        '<a href="https://example.org/?a=1&amp;b=2">link</a>',
        '<img alt="dot" src="data:image/png;base64,aGVsbG8=">',
        '<div style="display: flex; gap: 4px"><span style="color: #123">x</span></div>',
        '<progress value="3" max="10"></progress>',
        "<!-- a comment --><p>x</p>",
        '<p class="note" id="n" data-x="1" aria-label="x">decorated</p>',
    ],
)
def test_harmless_html_stays_in_the_page(html: str) -> None:
    assert FRAME not in page(html)
    assert "<iframe" not in page(html)


@pytest.mark.parametrize(
    "html",
    [
        "<script>1</script>",
        "<b>x</b><img src=x onerror=alert(1)>",
        "<IMG SRC=x OnError=alert(1)>",
        "<svg onload=alert(1)>",
        "<iframe src='javascript:1'></iframe>",
        "<form action='/api/terminals'><button>x</button></form>",
        "<style>@import url(/api/contents);</style>",
        "<table><style>td { background: url(/api/contents) }</style><tr><td>x</td></tr></table><link rel=x href=y>",
        "<math><mtext><table><mglyph><style><img src=x onerror=1></style></mglyph></table></mtext></math>",
        "<noscript><p title='</noscript><img src=x onerror=1>'></noscript>",
        r"<p>$\href{javascript:alert(1)}{x}$</p>",
        r"<p>$&#92;href{javascript:alert(1)}{x}$</p>",
        r"<p>$\hr<wbr>ef{javascript:alert(1)}{x}$</p>",
        r"<p>$\hr<b></b>ef{javascript:alert(1)}{x}$</p>",
        "<div>" * 30_000,
    ],
)
def test_other_html_goes_into_a_frame_as_a_whole(html: str) -> None:
    shown = page(html)
    assert shown.startswith('<div style="height:')
    assert shown.count(FRAME) == 1
    assert shown.endswith('"></iframe></div>')
    inside = shown[shown.index('srcdoc="') + 8 : -len('"></iframe></div>')]
    assert not set('"<>') & set(inside), "it cannot leave the attribute"


@pytest.mark.parametrize(
    "html",
    [
        '<p class="jp-Button lm-Menu" id="jp-main-dock-panel" data-commandlinker-command="terminal:create-new">x</p>',
        '<p style="position: fixed; top: 0; left: 0; z-index: 99999; width: 9999px">x</p>',
        '<p style="background: url(/api/contents)">x</p>',
        "<img src='/api/contents'>",
        '<p style="background: u\\72l(/api/contents)">x</p>',
        '<a href="javascript:alert(1)">x</a>',
        '<a href="java\tscript:alert(1)">x</a>',
        '<a href="&#106;avascript:alert(1)">x</a>',
        '<a href="/lab/tree/x">x</a>',
        '<a href="data:text/html,x">x</a>',
        "<!-- --!><img src=x onerror=1> -->x",
    ],
)
def test_nothing_that_could_do_harm_is_left_in_the_page(html: str) -> None:
    found = page(html)
    if FRAME not in found:
        for word in (
            "jp-",
            "lm-",
            "data-",
            "position",
            "url",
            "72l",
            "script:",
            "/lab",
            "data:",
            "onerror",
            "id=",
            "/api",
        ):
            assert word not in found


def test_frames_know_their_height_from_what_is_in_them() -> None:
    for html, height in [
        ('<div style="height:525px; width:100%"></div><script>1</script>', 549),
        ("<script>draw({'a': 1})</script>", 400),
        ('<script>draw({"height": 350})</script>', 374),
        ('<svg width="10" height="99999"></svg>', 200),
        ('<svg width="10" height="9999"></svg>', 1200),
        ("<form>x</form>", 200),
    ]:
        assert page(html).startswith(f'<div style="height:{height}px'), html


def test_html_that_is_too_much_is_not_shown_and_says_so() -> None:
    found = shown({"text/html": "<script>" + "x" * MAX_FRAME, "text/plain": "<big>"})
    assert found == {"text/plain": "<big>"}
    assert "not shown" in shown({"text/html": "<script>" + "x" * MAX_FRAME})["text/plain"]


def test_scripts_run_in_a_frame() -> None:
    for mime in ("application/javascript", "text/javascript"):
        found = shown({mime: "element.textContent = 'x'", "text/plain": "<Javascript>"})
        assert set(found) == {"text/html", "text/plain"}
        assert found["text/html"].count(FRAME) == 1


def test_markdown_is_rendered_without_raw_html() -> None:
    text = "# Title\n\n- *a* <script>x</script>\n\n[l](javascript:x) [k](https://a.b) $a_1 b_2$\n\n|a|\n|-|\n|1|\n"
    found = shown({"text/markdown": text, "text/plain": "<Markdown>"})
    assert "text/markdown" not in found
    for part in ("<h1>Title</h1>", "<em>a</em>", "&lt;script&gt;", 'href="https://a.b"', "$a_1 b_2$", "<td>1</td>"):
        assert part in found["text/html"]
    assert "javascript:x&quot;" not in found["text/html"]
    assert '"javascript' not in found["text/html"]
    assert r"\href" not in shown({"text/markdown": r"$\href{javascript:x}{y}$"})["text/html"]


@pytest.mark.parametrize(
    "command", ["href", "require", "class", "cssId", "style", "data", "def", "let", "newcommand", "csname", "unicode"]
)
def test_active_tex_is_shown_as_text(command: str) -> None:
    text = rf"$\{command}{{x}}{{y}}$"
    assert shown({"text/latex": text, "text/plain": "<IPython.core.display.Latex object>"}) == {"text/plain": text}


def test_svg_is_rebuilt_from_what_draws() -> None:
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/svg11.dtd">'
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" onload="x">'
        '<script>x</script><style>*{stroke-linejoin: round}</style><a href="javascript:x"><text>t</text></a>'
        '<use xlink:href="#b"/><use href="data:image/svg+xml,x"/><image href="/api/contents"/>'
        '<path d="M 0 0" clip-path="url(#p)" style="fill: url(/api/contents)"/>'
        "<foreignObject><b/></foreignObject></svg>"
    )
    found = shown({"image/svg+xml": svg})["image/svg+xml"]
    for part in ("<style>*{stroke-linejoin: round}</style>", 'href="#b"', 'd="M 0 0"', "url(#p)"):
        assert part in found
    for part in ("script", "onload", "foreignObject", "/api", "data:", "DOCTYPE"):
        assert part not in found


@pytest.mark.parametrize(
    "svg",
    [
        "<svg",
        "<html/>",
        '<!DOCTYPE x [<!ENTITY a "b">]><svg xmlns="http://www.w3.org/2000/svg">&a;</svg>',
        '<svg xmlns="http://www.w3.org/2000/svg">' + "<g>" * 50_000,
        '<svg xmlns="http://www.w3.org/2000/svg">' + "<g>" * 50_000 + "</g>" * 50_000 + "</svg>",
    ],
)
def test_svg_that_is_none_leaves_its_text(svg: str) -> None:
    assert shown({"image/svg+xml": svg, "text/plain": "<SVG>"}) == {"text/plain": "<SVG>"}


@pytest.mark.parametrize(
    "mime",
    [
        "application/vnd.vegalite.v5+json",
        "application/vnd.plotly.v1+json",
        "application/vnd.custom",
        "Text/HTML",
        "text/html; charset=utf-8",
        "application/vnd.jupyter.widget-view+json",
    ],
)
def test_unknown_types_leave_their_text_and_a_word(mime: str) -> None:
    found = shown({mime: {"model_id": "x"}, "text/plain": "<Chart>"})
    assert set(found) == {"text/plain"}
    assert found["text/plain"].startswith("<Chart>\n[vm-kernel: ")
    assert mime in found["text/plain"]
    assert set(shown({mime: {}, "image/png": "aGk="})) == {"image/png"}


def test_bytes_are_bytes() -> None:
    assert "image/png" not in shown({"image/png": '"><script>alert(1)</script>', "text/plain": "x"})


def test_text_may_come_in_lines_and_nothing_else() -> None:
    assert shown({"text/plain": ["a\n", "b"]}) == {"text/plain": "a\nb"}
    assert FRAME in shown({"text/html": ["<img src=x ", "onerror=1>"]})["text/html"]
    assert "text/html" not in shown({"text/html": {"a": 1}, "text/plain": "x"})
    assert shown([]) == {}  # type: ignore[arg-type]


def test_of_the_metadata_sizes_are_left() -> None:
    data = {"image/png": "aGk=", "text/html": "<b>x</b>"}
    metadata = {"image/png": {"width": 3, "x": 1}, "text/html": {"isolated": True}, "isolated": True, "height": "9"}
    assert Rules().bundle(data, metadata)[1] == {"image/png": {"width": 3}, "text/html": {}}


def test_static_shows_no_html() -> None:
    assert shown({"text/html": "<b>x</b>", "text/plain": "x"}, policy="static") == {"text/plain": "x"}
    assert "text/html" in shown({"text/html": "<b>x</b>"}, policy="static")["text/plain"], "a word about it"
    text = {"text/markdown": "*a*", "text/plain": "<IPython.core.display.Markdown object>"}
    assert shown(text, policy="static") == {"text/plain": "*a*"}


def test_a_library_is_kept_for_the_frames_that_need_it() -> None:
    rules = Rules()
    library = "<script>/* plotly.js v3 */ window.Plotly = {}; " + "x" * 200_000 + "</script>"
    assert rules.bundle({"text/html": library}, {})[0] == {"text/html": ""}
    chart = {"text/html": "<div id=p></div><script>Plotly.newPlot('p')</script>"}
    assert "plotly.js v3" in rules.bundle(chart, {})[0]["text/html"]
    assert "plotly.js v3" not in rules.bundle({"text/html": "<script>other()</script>"}, {})[0]["text/html"]


def test_a_script_finds_the_elements_that_its_cell_has_displayed() -> None:
    rules = Rules()
    rules.bundle({"text/html": '<div id="b-1"></div>'}, {}, "cell 1")
    script = {"application/javascript": "document.getElementById('b-1')"}
    assert "b-1&amp;quot;&amp;gt;" in rules.bundle(script, {}, "cell 1")[0]["text/html"]
    assert "b-1&amp;quot;&amp;gt;" not in rules.bundle(script, {}, "cell 2")[0]["text/html"]
