"""Rich output: displays by id, clear_output, plots as images, progress bars as text and as widgets."""

from __future__ import annotations

import base64
import struct
from typing import Any

from tests.kernel.session import Cell, Session

PLOT = "import matplotlib.pyplot as plt\nplt.figure(figsize=(4, 2), dpi=100)\nplt.plot([1, 3, 2]);"


def png_size(data: str) -> tuple[int, int]:
    """Width and height of a whole PNG in base64; fails if it is anything else."""
    image = base64.b64decode(data, validate=True)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    assert image.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", image[16:24])
    return width, height


def states(cell: Cell) -> dict[str, dict[str, Any]]:
    """The widgets that a cell made, by comm id, each in the state in which the cell left it."""
    found: dict[str, dict[str, Any]] = {}
    for message in cell.iopub:
        content = message["content"]
        if message["msg_type"] == "comm_open":
            found[content["comm_id"]] = dict(content["data"]["state"])
        elif message["msg_type"] == "comm_msg" and content["data"].get("method") == "update":
            found[content["comm_id"]].update(content["data"]["state"])
    return found


async def test_a_display_is_updated_by_its_id_from_a_later_cell(session: Session) -> None:
    first = await session.run(
        "from IPython.display import HTML, display, update_display\ndisplay(HTML('<b>one</b>'), display_id='mine')"
    )
    later = await session.run("update_display(HTML('<b>two</b>'), display_id='mine')")
    assert first.of("display_data")[0]["transient"] == {"display_id": "mine"}
    update = later.of("update_display_data")[0]
    assert (update["transient"], update["data"]["text/html"]) == ({"display_id": "mine"}, "<b>two</b>")


async def test_outputs_of_all_kinds_keep_their_order(session: Session) -> None:
    cell = await session.run(
        "import sys\nfrom IPython.display import JSON, clear_output, display\n"
        "print('a')\nprint('b', file=sys.stderr)\ndisplay(1)\nclear_output()\nprint('c')\n"
        "display(JSON({'d': [1]}))\n'e'"
    )
    assert cell.types == [
        *("busy", "execute_input", "stream", "stream", "display_data", "clear_output"),
        *("stream", "display_data", "execute_result", "idle"),
    ]
    assert cell.of("clear_output") == [{"wait": False}]
    assert cell.of("display_data")[1]["data"]["application/json"] == {"d": [1]}


async def test_idle_is_last_for_each_of_many_cells_sent_at_once(session: Session) -> None:
    code = "from IPython.display import display\nfor i in range(10):\n    print({n})\n    display({n})\n{n}"
    ids = [session.client.execute(code.format(n=n)) for n in range(20)]
    for n, msg_id in enumerate(ids):
        cell = await session.finish(msg_id)
        assert cell.types[-1] == "idle"
        assert cell.types.count("idle") == 1
        assert cell.stream() == f"{n}\n" * 10
        assert [each["data"]["text/plain"] for each in cell.of("display_data")] == [str(n)] * 10
        assert cell.value == str(n)


async def test_matplotlib_inline_needs_no_magic_and_shows_each_figure(session: Session) -> None:
    cell = await session.run(f"%matplotlib inline\n{PLOT}\nprint('between')\nplt.figure()\nplt.plot([1])\nplt.show()")
    sizes = [png_size(each["data"]["image/png"]) for each in cell.of("display_data")]
    assert len(sizes) == 2
    assert all(width > 100 and height > 100 for width, height in sizes)
    without = await session.run(PLOT)
    assert png_size(without.of("display_data")[0]["data"]["image/png"])[0] > 100


async def test_matplotlib_as_vectors(session: Session) -> None:
    cell = await session.run(f"%config InlineBackend.figure_formats = ['svg']\n{PLOT}")
    assert "</svg>" in cell.of("display_data")[0]["data"]["image/svg+xml"]


async def test_a_data_frame_is_a_table(session: Session) -> None:
    cell = await session.run("import pandas\npandas.DataFrame({'column': [1, 2]})")
    data = cell.of("execute_result")[0]["data"]
    assert "<th>column</th>" in data["text/html"]
    assert "column" in data["text/plain"]


async def test_tqdm_as_text(session: Session) -> None:
    cell = await session.run("from tqdm import tqdm\nfor i in tqdm(range(5), desc='text', mininterval=0):\n    pass")
    lines = cell.stream("stderr").split("\r")
    assert lines[1].startswith("text:   0%|")
    assert "| 5/5 [" in lines[-1]


async def test_tqdm_in_a_notebook_is_a_widget(session: Session) -> None:
    cell = await session.run(
        "from tqdm.auto import tqdm\nfor i in tqdm(range(5), desc='bar', mininterval=0):\n    pass"
    )
    assert cell.stream("stderr") == "", "no warning that the text form is used"
    model = cell.of("display_data")[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    made = states(cell)
    assert made[model]["_model_name"] == "HBoxModel"
    bar = next(state for state in made.values() if state["_model_name"] == "FloatProgressModel")
    assert (bar["value"], bar["max"], bar["bar_style"]) == (5.0, 5.0, "success")
    texts = [state["value"] for state in made.values() if state["_model_name"] == "HTMLModel"]
    assert "5/5" in texts[-1]


async def test_what_tasks_print_late_stays_with_their_cells(session: Session) -> None:
    """Those of threads goes to the cell that runs meanwhile: that is how ipykernel tells them apart."""
    await session.run("import asyncio, threading\ngates = [asyncio.Event(), asyncio.Event()]\ntasks = []")
    code = (
        "async def late():\n    await gates[{n}].wait()\n    print('late {n}')\n"
        "tasks.append(asyncio.create_task(late()))"
    )
    ids = [session.client.execute(code.format(n=n)) for n in range(2)]
    for msg_id in ids:
        await session.finish(msg_id)
    opened = await session.run(
        "for gate in reversed(gates): gate.set()\nawait asyncio.gather(*tasks)\n"
        "thread = threading.Thread(target=print, args=('thread',))\nthread.start()\nthread.join()"
    )
    for n, msg_id in enumerate(ids):
        await session.until_output(msg_id, f"late {n}\n")
        assert session.printed(msg_id) == f"late {n}\n"
    assert opened.stream() == "thread\n"
