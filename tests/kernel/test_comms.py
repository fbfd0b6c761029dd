"""Comms in both directions, with buffers, also while a cell runs; and the widgets that are built on them."""

from __future__ import annotations

from typing import Any

from tests.kernel.session import Session

ECHO = """
from comm import get_comm_manager
def opened(comm, message):
    comm.on_msg(lambda m: comm.send({'echo': m['content']['data']}, buffers=[bytes(b)[::-1] for b in m['buffers']]))
    comm.send({'opened': message['content']['data']})
get_comm_manager().register_target('echo', opened)
"""


def data(session: Session, comm_id: str) -> list[tuple[Any, list[bytes]]]:
    """What a comm of the guest has sent so far."""
    return [
        (m["content"]["data"], [bytes(b) for b in m["buffers"]])
        for messages in session.iopub.values()
        for m in messages
        if m["msg_type"] == "comm_msg" and m["content"]["comm_id"] == comm_id
    ]


async def test_a_comm_of_the_client_carries_data_and_buffers_both_ways(session: Session) -> None:
    await session.run(ECHO)
    session.send("comm_open", {"comm_id": "c1", "target_name": "echo", "data": {"n": 1}})
    await session.until(lambda: data(session, "c1") == [({"opened": {"n": 1}}, [])], "the opened comm")
    big = bytes(range(256)) * 4000
    msg_id = session.send("comm_msg", {"comm_id": "c1", "data": {"n": 2}}, buffers=[b"abc", big])
    await session.until(lambda: len(data(session, "c1")) == 2, "the echo")
    assert data(session, "c1")[1] == ({"echo": {"n": 2}}, [b"cba", big[::-1]])
    await session.until(lambda: "comm_msg" in [m["msg_type"] for m in session.iopub[msg_id]], "its parent")
    comms = (await session.ask("comm_info_request", {"target_name": "echo"})).reply["content"]["comms"]
    assert comms == {"c1": {"target_name": "echo"}}


async def test_a_widget_is_opened_changed_by_the_client_and_observed(session: Session) -> None:
    cell = await session.run("import ipywidgets\nslider = ipywidgets.IntSlider(value=3)\nslider")
    opened = {c["data"]["state"]["_model_name"]: c["comm_id"] for c in cell.of("comm_open")}
    assert {"LayoutModel", "SliderStyleModel", "IntSliderModel"} <= opened.keys()
    view = (cell.of("execute_result") + cell.of("display_data"))[0]["data"]
    assert view["application/vnd.jupyter.widget-view+json"]["model_id"] == opened["IntSliderModel"]
    update = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
    session.send("comm_msg", {"comm_id": opened["IntSliderModel"], "data": update})
    assert (await session.run("slider.value")).value == "7"


async def test_a_comm_reaches_a_cell_that_is_running(session: Session) -> None:
    await session.run(ECHO)
    await session.run(
        "import asyncio\nheard = []\n"
        "get_comm_manager().register_target('tell', lambda comm, m: comm.on_msg(lambda m: heard.append(1)))"
    )
    session.send("comm_open", {"comm_id": "c2", "target_name": "tell", "data": {}})
    busy = session.client.execute("print('begun')\nwhile not heard:\n    await asyncio.sleep(0.01)\nprint('heard')")
    await session.until_output(busy, "begun")
    session.send("comm_msg", {"comm_id": "c2", "data": {}})
    assert (await session.finish(busy)).stream() == "begun\nheard\n"
