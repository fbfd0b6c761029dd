"""Widgets as JupyterLab drives them: state both ways, callbacks and their output, also beside a cell that is busy."""

from __future__ import annotations

from typing import Any

from tests.kernel.session import Cell, Session

SLIDER = """
import ipywidgets
slider = ipywidgets.IntSlider(value=3, max=100)
label = ipywidgets.Label(value='3')
def moved(change):
    label.value = str(change['new'])
    print('moved to', change['new'])
slider.observe(moved, 'value')
ipywidgets.VBox([slider, label])
"""


def opened(cell: Cell) -> dict[str, str]:
    """Comm ids of the widgets that a cell made, by model; of several of a kind, the last."""
    return {content["data"]["state"]["_model_name"]: content["comm_id"] for content in cell.of("comm_open")}


def update(session: Session, comm_id: str, state: dict[str, Any], **options: Any) -> str:
    """What a front end sends when a user has moved something."""
    data = {"method": "update", "state": state, "buffer_paths": options.pop("buffer_paths", [])}
    return session.send("comm_msg", {"comm_id": comm_id, "data": data}, **options)


def updates(session: Session, msg_id: str, comm_id: str) -> list[dict[str, Any]]:
    """What a message has caused to be sent to the front end's half of a widget."""
    found = []
    for message in session.iopub.get(msg_id, []):
        if message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == comm_id:
            data = message["content"]["data"]
            assert data["method"] in ("update", "echo_update")
            found.append(data["state"])
    return found


def idle(session: Session, msg_id: str) -> bool:
    """True when a message without a reply has been dealt with."""
    return any(m["content"].get("execution_state") == "idle" for m in session.iopub.get(msg_id, []))


async def test_a_moved_slider_runs_its_callback(session: Session) -> None:
    models = opened(await session.run(SLIDER))
    for value in (7, 8):
        msg_id = update(session, models["IntSliderModel"], {"value": value})
        await session.until(lambda msg_id=msg_id: idle(session, msg_id), "the end of the callback")
        assert session.printed(msg_id) == f"moved to {value}\n"
        assert updates(session, msg_id, models["LabelModel"]) == [{"value": str(value)}]
        types = [m["content"].get("execution_state", m["msg_type"]) for m in session.iopub[msg_id]]
        assert (types[0], types[-1]) == ("busy", "idle")
    assert (await session.run("slider.value, label.value")).value == "(8, '8')"


async def test_a_widget_that_code_changes_tells_the_front_end(session: Session) -> None:
    models = opened(await session.run(SLIDER))
    cell = await session.run("slider.value = 42")
    msg_id = cell.reply["parent_header"]["msg_id"]
    assert updates(session, msg_id, models["IntSliderModel"]) == [{"value": 42}]
    assert updates(session, msg_id, models["LabelModel"]) == [{"value": "42"}]
    assert cell.stream() == "moved to 42\n"


async def test_a_new_page_can_ask_for_all_widgets(session: Session) -> None:
    """After a reload JupyterLab asks which comms there are, then each for its state."""
    models = opened(await session.run(SLIDER))
    await session.run("slider.value = 55")
    comms = (await session.ask("comm_info_request", {"target_name": "jupyter.widget"})).reply["content"]["comms"]
    assert set(models.values()) <= comms.keys()
    content = {"comm_id": models["IntSliderModel"], "data": {"method": "request_state"}}
    msg_id = session.send("comm_msg", content)
    await session.until(lambda: idle(session, msg_id), "the answer")
    assert updates(session, msg_id, models["IntSliderModel"])[0]["value"] == 55


async def test_binary_state_goes_both_ways(session: Session) -> None:
    cell = await session.run("import ipywidgets\nimage = ipywidgets.Image(value=bytes(range(256)) * 1000)\nimage")
    message = next(m for m in cell.iopub if m["msg_type"] == "comm_open" and "ImageModel" in str(m["content"]))
    assert message["content"]["data"]["buffer_paths"] == [["value"]]
    assert [bytes(each) for each in message["buffers"]] == [bytes(range(256)) * 1000]
    sent = bytes(reversed(range(256))) * 3
    update(session, message["content"]["comm_id"], {}, buffer_paths=[["value"]], buffers=[sent])
    assert (await session.run("bytes(image.value) == bytes(reversed(range(256))) * 3")).value == "True"


async def test_a_callback_that_fails_shows_its_error(session: Session) -> None:
    cell = await session.run(
        "import ipywidgets\nbutton = ipywidgets.Button()\n@button.on_click\ndef fail(_):\n    1 / 0\nbutton"
    )
    content = {"comm_id": opened(cell)["ButtonModel"], "data": {"method": "custom", "content": {"event": "click"}}}
    msg_id = session.send("comm_msg", content)
    await session.until(lambda: idle(session, msg_id), "the end of the callback")
    assert "ZeroDivisionError" in str([m["content"] for m in session.iopub[msg_id]])
    assert (await session.run("1")).value == "1"


async def test_a_slider_moves_while_a_cell_is_busy(session: Session) -> None:
    """JupyterLab creates a subshell for its comms. ipykernel lets a widget's messages run where the widget has last
    spoken, whatever subshell they name; so this one is made on the subshell."""
    created = await session.ask("create_subshell_request", {}, "control")
    subshell = {"subshell_id": created.reply["content"]["subshell_id"]}
    models = opened(await session.ask("execute_request", {"code": SLIDER}, **subshell))
    busy = session.client.execute(
        "import time\nprint('begun')\nwhile slider.value != 9:\n    time.sleep(0.01)\nprint('seen', slider.value)"
    )
    await session.until_output(busy, "begun")
    moves = [update(session, models["IntSliderModel"], {"value": value}, **subshell) for value in (5, 6, 9)]
    cell = await session.finish(busy)
    assert cell.stream() == "begun\nseen 9\n"
    for msg_id, value in zip(moves, (5, 6, 9), strict=True):
        await session.until(lambda msg_id=msg_id: idle(session, msg_id), "the end of the callback")
        assert session.printed(msg_id) == f"moved to {value}\n"
        assert updates(session, msg_id, models["LabelModel"]) == [{"value": str(value)}]


async def test_comms_during_an_async_cell_have_no_status_of_their_own(session: Session) -> None:
    """Else a client would see 'idle' while the cell still runs."""
    models = opened(await session.run(SLIDER))
    busy = session.client.execute(
        "import asyncio\nprint('begun')\nwhile slider.value != 9:\n    await asyncio.sleep(0.01)\nprint('seen')"
    )
    await session.until_output(busy, "begun")
    during = update(session, models["IntSliderModel"], {"value": 9})
    assert (await session.finish(busy)).stream() == "begun\nseen\n"
    after = update(session, models["IntSliderModel"], {"value": 10})
    await session.until(lambda: idle(session, after), "the end of the second callback")
    assert session.printed(during) == "moved to 9\n"
    assert updates(session, during, models["LabelModel"]) == [{"value": "9"}]
    assert "status" not in {m["msg_type"] for m in session.iopub[during]}
