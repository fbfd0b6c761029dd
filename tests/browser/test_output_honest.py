"""Honest outputs under the default policy: they look as they do without it, in the page or in a frame of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import FrameLocator, Locator, expect

from tests.browser.lab import TIMEOUT_S, Lab, Notebook
from tests.browser.policies import CHARTS, profiles
from tests.cli.command import vm_kernel
from tests.conftest import wait_until
from tests.lab_server import LabServer
from vm_kernel.pool.client import PoolConnection

#: the first of the charts waits for an image and for its golden snapshot
pytestmark = pytest.mark.timeout(500)

PANDAS = "import pandas as pd\ndf = pd.DataFrame({'name': ['Ada', 'Bob'], 'x': [1, -2]})\ndf"
STYLER = (
    PANDAS + ".style.map(lambda x: 'background-color: #cc0000; color: white' if isinstance(x, int) and x < 0 else '')"
    ".set_caption('Signs')"
)
MARKDOWN = """\
from IPython.display import Markdown
Markdown('''# Title

- *one* $a_1^2 b_2$
- [link](https://example.org/)

| a | b |
|---|---|
| 1 | 2 |
''')"""
MATH = r"from IPython.display import Math; Math(r'\frac{alpha}{beta}')"
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9]); plt.show()"
VECTORS = "%config InlineBackend.figure_formats = ['svg']\n" + PLOT
SCRIPT = """\
from IPython.display import HTML
HTML('<div id="there" style="height: 525px">-</div><script>there.textContent = "6 * 7 = " + 6 * 7</script>')"""
JAVASCRIPT = "from IPython.display import Javascript\nJavascript('element.textContent = \"drawn\"')"
WIDGETS = """\
import ipywidgets as w
slider, bar, page = w.IntSlider(value=3, max=10), w.IntProgress(value=4, max=8), w.HTML('<b>bold</b> <i>text</i>')
w.jslink((slider, 'value'), (bar, 'value'))
out = w.Output()
with out:
    print('printed into a widget')
w.VBox([slider, bar, page, w.Tab([w.Label('in the tab')], titles=['First']), w.Button(description='Press'), out])"""
TQDM = "from tqdm.notebook import tqdm\nfor _ in tqdm(range(5), desc='steps'): pass"

PLOTLY = """\
import plotly.graph_objects as go
figure = go.Figure(go.Bar(x=['a', 'b'], y=[1, 3]), layout={'height': 380, 'title': 'Bars'})
figure.show()"""
PLOTLY_WHOLE = "from IPython.display import HTML\nHTML(figure.to_html(include_plotlyjs=True))"
BOKEH_LOAD = "from bokeh.io import output_notebook\noutput_notebook(hide_banner=True)"
BOKEH = """\
from bokeh.plotting import figure as new, show
p = new(height=320, width=400, title='Line')
p.line([1, 2, 3], [1, 4, 9])
show(p)"""
ALTAIR = """\
import altair as alt, pandas as pd
alt.renderers.enable('png')
alt.Chart(pd.DataFrame({'a': [1, 2], 'b': [3, 5]})).mark_bar().encode(x='a:O', y='b')"""
ALTAIR_SPEC = "alt.renderers.enable('mimetype')\nalt.Chart(pd.DataFrame({'a': [1]})).mark_bar().encode(x='a:O')"


def shown(notebook: Notebook, index: int) -> Locator:
    """What a cell has put out, once it has run, in sight."""
    notebook.run(index)
    return in_sight(notebook, index)


def in_sight(notebook: Notebook, index: int) -> Locator:
    """What a cell has put out: Lab does not lay out what is outside the window."""
    notebook.cell(index).scroll_into_view_if_needed()
    output = notebook.output(index)
    output.scroll_into_view_if_needed()
    return output


def inside(output: Locator) -> FrameLocator:
    """The inner frame of an output that has one; the outer one is sandboxed."""
    outer = output.locator("iframe")
    expect(outer).to_have_count(1)
    expect(outer).to_have_attribute("sandbox", "allow-scripts")
    return outer.content_frame.frame_locator("iframe")


def height(output: Locator) -> float:
    box = output.locator("iframe").bounding_box()
    assert box is not None
    return box["height"]


def test_a_table_stays_in_the_page(lab: Lab) -> None:
    notebook = lab.notebook(PANDAS)
    table = shown(notebook, 0).locator("table.dataframe")
    expect(table).to_be_visible()
    expect(table.locator("td").first).to_have_text("Ada")
    expect(notebook.output(0).locator("iframe")).to_have_count(0)


def test_markdown_and_formulas_are_typeset(lab: Lab) -> None:
    notebook = lab.notebook(MARKDOWN, MATH)
    output = shown(notebook, 0)
    expect(output.locator("h1")).to_contain_text("Title")
    expect(output.locator("li em")).to_have_text("one")
    expect(output.locator("mjx-container")).to_have_count(1)
    expect(output.locator("td")).to_have_text(["1", "2"])
    link = output.locator("a[href='https://example.org/']")
    expect(link).to_have_attribute("rel", re.compile("noopener"))
    expect(shown(notebook, 1).locator("mjx-container")).to_have_count(1)
    lab.shot("output-markdown")


def test_plots_as_pictures_and_as_vectors(lab: Lab) -> None:
    notebook = lab.notebook(PLOT, VECTORS)
    for index in (0, 1):
        picture = shown(notebook, index).locator("img")
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("image => image.naturalWidth") > 200
    assert (notebook.output(1).locator("img").get_attribute("src") or "").startswith("data:image/svg+xml")


def test_scripts_run_in_a_frame_of_sensible_height(lab: Lab) -> None:
    notebook = lab.notebook(SCRIPT, JAVASCRIPT)
    output = shown(notebook, 0)
    expect(inside(output).locator("#there")).to_have_text("6 * 7 = 42")
    assert 525 < height(output) < 600
    output = shown(notebook, 1)
    expect(inside(output).locator("#output")).to_have_text("drawn")
    assert height(output) > 100
    lab.shot("output-frame")


def test_widgets_work(lab: Lab) -> None:
    notebook = lab.notebook(WIDGETS, TQDM, "slider.value")
    output = shown(notebook, 0)
    expect(output.locator("b", has_text="bold")).to_be_visible()
    expect(output).to_contain_text("printed into a widget")
    expect(output).to_contain_text("in the tab")
    expect(output.locator("button", has_text="Press")).to_be_visible()
    handle = output.locator(".noUi-handle")
    handle.focus()
    handle.press("ArrowRight")
    expect(output.locator(".widget-readout").first).to_have_text("4")
    assert shown(notebook, 2).inner_text().endswith("4")
    steps = shown(notebook, 1)
    expect(steps).to_contain_text("steps")
    expect(steps).to_contain_text("5/5")
    lab.shot("output-widgets")


@pytest.fixture(scope="module")
def charts(server: LabServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A kernel whose image has the usual libraries for charts; a second run finds the image."""
    wanted = tmp_path_factory.mktemp("charts") / "requirements.txt"
    wanted.write_text("plotly\nnbformat\nbokeh\naltair\nvl-convert-python\n")
    if "charts" not in vm_kernel("image", "list").stdout:
        vm_kernel("image", "build", "--name", "charts", "--requirements", wanted)
    with profiles(charts={"image": "charts", "memory_mib": 768, "min_warm": 0, "max_vms": 2}):
        # its golden snapshot takes longer to build than a browser waits
        with closing(PoolConnection.open()) as connection:
            connection.acquire("charts")
        yield CHARTS


def test_a_styled_table_keeps_its_colours(lab: Lab, charts: str) -> None:
    notebook = lab.notebook(STYLER, kernel=charts)
    styled = shown(notebook, 0)
    expect(styled.locator("iframe")).to_have_count(0)
    expect(styled.locator("caption")).to_have_text("Signs")
    expect(styled.locator("td", has_text="-2")).to_have_css("background-color", "rgb(204, 0, 0)")


def test_charts_of_plotly_bokeh_and_altair(lab: Lab, charts: str) -> None:
    notebook = lab.notebook(PLOTLY, PLOTLY_WHOLE, BOKEH_LOAD, BOKEH, ALTAIR, ALTAIR_SPEC, kernel=charts)
    notebook.menu("Run", "Run All Cells")
    wait_until(lambda: notebook.prompt(5) == "[6]:", 2 * TIMEOUT_S, "all cells have run")
    for index in (0, 1):
        output = in_sight(notebook, index)
        expect(inside(output).locator(".bars path").first).to_be_attached()
        assert 380 < height(output) < 500
        lab.shot(f"output-plotly-{index}")
    output = in_sight(notebook, 3)
    expect(inside(output).locator("canvas").first).to_be_attached()
    assert 300 < height(output) < 500
    lab.shot("output-bokeh")
    picture = in_sight(notebook, 4).locator("img")
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("image => image.naturalWidth") > 50
    expect(in_sight(notebook, 5)).to_contain_text("not shown under the output policy 'isolated'")


def test_a_saved_notebook_has_what_was_let_through(lab: Lab) -> None:
    """So an export has the picture, and the script in its frame only."""
    notebook = lab.notebook(PLOT, SCRIPT)
    for index in (0, 1):
        shown(notebook, index)
    picture, page = (cell["outputs"][0]["data"] for cell in notebook.saved()["cells"])
    assert picture["image/png"].startswith("iVBORw0KGgo")
    html = "".join(page["text/html"])
    assert html.count("<iframe") == 1
    assert "<script" not in html
