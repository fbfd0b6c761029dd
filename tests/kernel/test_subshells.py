"""Subshells: shells beside the main one, which run while a cell is busy, and what must not get mixed up then."""

from __future__ import annotations

import asyncio

from tests.kernel.session import Session
from tests.kernel.test_comms import ECHO
from tests.kernel.test_display import png_size

#: not by pyplot: at the end of any comm message ipykernel shows, and closes, what pyplot is at
PLOTS = """
%matplotlib inline
from IPython.display import display
from matplotlib.figure import Figure
print('begun')
for _ in range(4):
    figure = Figure(figsize=(4, 2))
    figure.add_subplot().plot([1, 3, 2])
    display(figure)
"""
BUSY = "import threading\nstop = threading.Event()\nprint('begun')\nstop.wait(100)\nprint('ended')"


async def create(session: Session) -> str:
    """A new subshell's id."""
    return str((await session.ask("create_subshell_request", {}, "control")).reply["content"]["subshell_id"])


async def listed(session: Session) -> list[str]:
    """The subshells that there are."""
    return list((await session.ask("list_subshell_request", {}, "control")).reply["content"]["subshell_id"])


async def test_subshells_are_created_listed_and_deleted(session: Session) -> None:
    assert await listed(session) == []
    ids = [await create(session) for _ in range(3)]
    assert sorted(await listed(session)) == sorted(ids)
    deleted = await session.ask("delete_subshell_request", {"subshell_id": ids[1]}, "control")
    assert deleted.status == "ok"
    assert sorted(await listed(session)) == sorted([ids[0], ids[2]])
    again = await session.ask("delete_subshell_request", {"subshell_id": ids[1]}, "control")
    assert again.status == "error"


async def test_a_cell_for_a_subshell_that_is_not_there_is_an_error(session: Session) -> None:
    # ipykernel answers before it says 'busy', and never says 'idle'
    msg_id = session.send("execute_request", {"code": "1"}, subshell_id="nowhere")
    await session.until(lambda: msg_id in session.replies, "the reply")
    assert session.replies[msg_id]["content"]["status"] == "error"
    assert (await session.run("2")).value == "2"


async def test_everything_works_on_a_subshell_while_a_cell_is_busy(session: Session) -> None:
    subshell_id = await create(session)
    busy = session.client.execute(BUSY)
    await session.until_output(busy, "begun")
    beside = await session.ask("execute_request", {"code": "print('beside')\n6 * 7"}, subshell_id=subshell_id)
    assert (beside.stream(), beside.value) == ("beside\n", "42")
    completion = await session.ask("complete_request", {"code": "stop.is_s", "cursor_pos": 9}, subshell_id=subshell_id)
    assert "is_set" in str(completion.reply["content"]["matches"])
    await session.ask("execute_request", {"code": "stop.set()"}, subshell_id=subshell_id)
    assert (await session.finish(busy)).stream() == "begun\nended\n"


async def test_an_error_on_a_subshell_aborts_nothing_on_the_main_shell(session: Session) -> None:
    subshell_id = await create(session)
    busy = session.client.execute(BUSY)
    await session.until_output(busy, "begun")
    behind = session.client.execute("'behind'")
    failed = await session.ask("execute_request", {"code": "stop.set()\n1 / 0"}, subshell_id=subshell_id)
    assert failed.reply["content"]["ename"] == "ZeroDivisionError"
    assert (await session.finish(busy)).status == "ok"
    assert (await session.finish(behind)).value == "'behind'"


async def test_plots_are_not_disturbed_by_comms_on_a_subshell(session: Session) -> None:
    """Each output names the request that caused it, and images arrive whole, whatever comms do meanwhile."""
    subshell_id = await create(session)
    await session.run(ECHO)
    session.send("comm_open", {"comm_id": "c", "target_name": "echo", "data": {}}, subshell_id=subshell_id)
    plotting = session.client.execute(PLOTS)
    await session.until_output(plotting, "begun")
    messages = []
    for n in range(100):
        content = {"comm_id": "c", "data": {"n": n}}
        messages.append(session.send("comm_msg", content, buffers=[bytes([n]) * 5000], subshell_id=subshell_id))
        await asyncio.sleep(0.005)
    cell = await session.finish(plotting)
    assert cell.types[-1] == "idle"
    images = [each["data"]["image/png"] for each in cell.of("display_data")]
    assert [png_size(image)[0] > 100 for image in images] == [True] * 4
    assert len(set(images)) == 1
    for n, msg_id in enumerate(messages):
        await session.until(lambda msg_id=msg_id: len(session.iopub.get(msg_id, [])) >= 3, "the echo and its status")
        echo = [m for m in session.iopub[msg_id] if m["msg_type"] == "comm_msg"]
        assert [m["content"]["data"] for m in echo] == [{"echo": {"n": n}}]
        assert bytes(echo[0]["buffers"][0]) == bytes([n]) * 5000
        assert {m["msg_type"] for m in session.iopub[msg_id]} == {"status", "comm_msg"}


async def test_a_host_cell_on_a_subshell_is_answered_while_a_cell_is_busy(session: Session) -> None:
    subshell_id = await create(session)
    busy = session.client.execute(BUSY)
    await session.until_output(busy, "begun")
    info = await session.ask("execute_request", {"code": "%vm_info"}, subshell_id=subshell_id)
    assert "text/html" in info.of("display_data")[0]["data"]
    await session.ask("execute_request", {"code": "stop.set()"}, subshell_id=subshell_id)
    assert (await session.finish(busy)).status == "ok"
