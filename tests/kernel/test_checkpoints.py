"""%checkpoint and %rollback in a session: the whole live state, saved and brought back in the same notebook."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager

from tests.conftest import StartKernel, ended, eventually, service_pid
from tests.kernel.session import Cell, Session, connected, has_ended, pid_of, vm_of
from tests.kernel.stalled import stalled_pool
from vm_kernel.pool.client import PoolConnection

KernelAndSession = tuple[AsyncKernelManager, Session]


@pytest.fixture
def session(fresh_session: Session) -> Session:
    """A session with the checkpoints that the test has saved, and no others."""
    return fresh_session


def text_of(cell: Cell) -> str:
    assert cell.status == "ok", cell.reply["content"]
    return str(cell.of("display_data")[-1]["data"]["text/plain"])


def error_of(cell: Cell) -> tuple[str, str]:
    content = cell.reply["content"]
    assert content["status"] == "error", content
    return content["ename"], content["evalue"]


async def saved(session: Session) -> list[dict[str, Any]]:
    return json.loads(text_of(await session.run("%checkpoints --json")))["checkpoints"]  # type: ignore[no-any-return]


async def test_a_rollback_brings_back_variables_files_and_processes(session: Session) -> None:
    await session.run(
        "import subprocess, random, pathlib, time, threading\n"
        "x = [1]; ticks = 0\npathlib.Path('f.txt').write_text('before')\n"
        "child = subprocess.Popen(['sleep', '1000'])\nrandom.seed(5)\n"
        "def tick():\n    global ticks\n    while True: time.sleep(0.01); ticks += 1\n"
        "threading.Thread(target=tick, daemon=True).start()"
    )
    assert "Checkpoint 'before'" in text_of(await session.run("%checkpoint before"))
    drawn = (await session.run("random.random()")).value
    await session.run("x.append(2); pathlib.Path('f.txt').write_text('after'); child.kill(); child.wait()")

    assert "Back at checkpoint 'before'" in text_of(await session.run("%rollback before"))
    assert (await session.run("x, pathlib.Path('f.txt').read_text(), child.poll()")).value == "([1], 'before', None)"
    assert (await session.run("random.random()")).value == drawn, "the state of random is a variable, too"
    assert (await session.run("n = ticks; time.sleep(0.3); ticks > n")).value == "True", "threads go on"
    assert (await session.run(f"abs(time.time() - {time.time()}) < 60")).value == "True"
    assert text_of(await session.run("%rollback before")), "as often as one likes"
    assert (await session.run("x")).value == "[1]"


async def test_cells_that_are_queued_run_before_and_after_in_order(session: Session) -> None:
    codes = ["x = 1", "%checkpoint a", "x = 2", "x", "%rollback a", "x", "import os; os.getpid()"]
    ids = [session.client.execute(code) for code in codes]
    cells = [await session.finish(msg_id) for msg_id in ids]
    assert [cell.status for cell in cells] == ["ok"] * 7
    assert [cells[3].value, cells[5].value] == ["2", "1"]
    assert [cell.number for cell in cells[:5]] == [1, 2, 3, 4, 5]
    assert cells[5].number == 3, "the count is a part of the state: the checkpoint was cell 2"
    assert cells[1].types == ["busy", "execute_input", "display_data", "idle"]


async def test_a_failed_rollback_changes_nothing_and_stops_what_is_queued(session: Session) -> None:
    await session.run("x = 1")
    ids = [session.client.execute(code) for code in ("%rollback nosuch", "x = 2", "%checkpoint late")]
    failed, *behind = [await session.finish(msg_id) for msg_id in ids]
    name, message = error_of(failed)
    assert name == "CheckpointError"
    assert "There is no checkpoint 'nosuch'" in message
    assert "%checkpoint NAME" in message, "it says what to do"
    assert [cell.reply["content"]["status"] for cell in behind] == ["aborted", "aborted"]
    assert (await session.run("x")).value == "1"
    assert await saved(session) == []


async def test_names_and_options_that_make_no_sense(session: Session) -> None:
    for code in ("%checkpoint", "%checkpoint a b", "%rollback", "%checkpoint --nosuch x", "%checkpoints x"):
        name, message = error_of(await session.run(code))
        assert name == "UsageError"
        assert message.startswith("usage: %")
    for name in ("../x", ".hidden", "-x", "a/b", "x" * 65, "''"):
        ename, message = error_of(await session.run(f"%checkpoint -- {name}"))
        assert ename == "CheckpointError"
        assert "cannot be a checkpoint's name" in message
    assert text_of(await session.run("%rollback --help")).startswith("usage: %rollback")
    assert error_of(await session.run("%checkpoint a\nx = 1"))[0] == "UsageError"
    assert (await session.run("1 + 1")).value == "2"


async def test_checkpoints_are_listed_replaced_and_deleted(session: Session) -> None:
    assert "There is no checkpoint" in text_of(await session.run("%checkpoints"))
    await session.run("x = 1")
    await session.run("%checkpoint a")
    await session.run("x = 2")
    await session.run("%checkpoint b")
    await session.run("%checkpoint a")
    names = [(facts["name"], facts["kept"], facts["refusal"]) for facts in await saved(session)]
    assert names == [("b", False, None), ("a", False, None)]
    table = (await session.run("%checkpoints")).of("display_data")[-1]["data"]
    assert "on disk" in table["text/plain"]
    assert table["text/html"].startswith("<table>")
    await session.run("x = 3")
    await session.run("%rollback a")
    assert (await session.run("x")).value == "2"
    assert "deleted" in text_of(await session.run("%checkpoint --delete b"))
    assert [facts["name"] for facts in await saved(session)] == ["a"]


async def test_checkpoints_end_with_their_session_unless_they_are_kept(
    start_kernel: StartKernel, warm_pool: None, vm_home: Path
) -> None:
    async with start_kernel() as (_, client):
        session = Session(client)
        await session.run("x = 'from the first session'")
        await session.run("%checkpoint gone")
        assert "it is kept" in text_of(await session.run("%checkpoint stays --keep"))
        assert len(list((vm_home / "checkpoints" / "live").glob("*/*/state"))) == 1
    live = vm_home / "checkpoints" / "live"
    await eventually(lambda: list(live.iterdir()) == [], 60.0, "the session's checkpoints have gone")
    async with start_kernel() as (_, client):
        session = Session(client)
        assert [facts["name"] for facts in await saved(session)] == ["stays"]
        cells = [session.client.execute(code) for code in ("%rollback stays", "x")]
        assert text_of(await session.finish(cells[0]))
        assert (await session.finish(cells[1])).value == "'from the first session'"

        pages = vm_home / "checkpoints" / "kept" / "stays" / "pages"
        pages.write_bytes(b"x" + pages.read_bytes()[1:])
        assert "it is damaged" in error_of(await session.run("%rollback stays"))[1]
        assert (await session.run("x")).value == "'from the first session'"
        await session.run("%checkpoint --delete stays")
        assert await saved(session) == []


async def test_a_kept_checkpoint_of_another_golden_snapshot_is_refused_with_the_reason(
    session: Session, start_kernel: StartKernel, vm_home: Path
) -> None:
    await session.run("%checkpoint foreign --keep")
    manifest = vm_home / "checkpoints" / "kept" / "foreign" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"build_id": "0" * 16}))
    async with start_kernel() as (_, client):
        other = Session(client)
        (facts,) = await saved(other)
        assert "another golden snapshot" in facts["refusal"]
        message = error_of(await other.run("%rollback foreign"))[1]
        assert "another golden snapshot: the image, the profile, the guest agent or QEMU has changed" in message
        await other.run("%checkpoint --delete foreign")


async def test_another_clients_running_cell_is_waited_for(kernel: KernelAndSession) -> None:
    manager, session = kernel
    async with connected(manager) as other:
        running = other.client.execute("import time; time.sleep(1.5); y = 'done'")
        await other.until(lambda: running in other.iopub, "it has begun")
        await session.run("%checkpoint a")
        assert (await session.run("y")).value == "'done'", "it had ended when the state was saved"
        assert (await other.finish(running)).status == "ok"
        await session.run("%rollback a")
        assert (await other.run("y")).value == "'done'", "the other client has come along"


async def test_comms_of_the_checkpoint_go_on(session: Session) -> None:
    await session.run("import ipywidgets; slider = ipywidgets.IntSlider(3)")
    comm = (await session.run("slider.comm.comm_id")).value.strip("'")
    await session.run("%checkpoint a")
    await session.run("slider.value = 7")
    await session.run("%rollback a")
    assert (await session.run("slider.value")).value == "3"
    data = {"method": "update", "state": {"value": 5}, "buffer_paths": []}
    session.send("comm_msg", {"comm_id": comm, "data": data})
    assert (await session.run("slider.value")).value == "5"


async def test_an_interrupt_ends_the_wait_for_a_busy_cell(kernel: KernelAndSession) -> None:
    manager, session = kernel
    async with connected(manager) as other:
        running = other.client.execute("import time; time.sleep(1000)")
        await other.until(lambda: running in other.iopub, "it has begun")
        ids = [session.client.execute(code) for code in ("%checkpoint a", "1")]
        await session.drain(0.5)
        await manager.interrupt_kernel()
        assert (await other.finish(running)).reply["content"]["ename"] == "KeyboardInterrupt"
        for msg_id in ids:
            await session.finish(msg_id)
    assert (await session.run("2 + 2")).value == "4"


async def test_a_service_that_stands_still_delays_the_checkpoint_and_nothing_is_lost(session: Session) -> None:
    await session.run("x = 1")
    with stalled_pool() as go_on:
        ids = [session.client.execute(code) for code in ("%checkpoint a", "x += 1; x")]
        await session.drain(1.0)
        assert not session.replies
        go_on()
        assert (await session.finish(ids[0])).status == "ok"
        assert (await session.finish(ids[1])).value == "2"


async def test_the_vm_dies_while_it_is_to_be_saved(kernel: KernelAndSession) -> None:
    manager, session = kernel
    vm = vm_of(manager)
    os.kill(vm, signal.SIGSTOP)
    cell = session.client.execute("%checkpoint a")
    await session.drain(0.5)
    os.kill(vm, signal.SIGKILL)
    assert error_of(await session.finish(cell))[0] in ("VMDied", "CheckpointError")
    await has_ended(manager)


async def test_the_kernel_process_is_killed_between_the_checkpoint_and_its_use(
    start_kernel: StartKernel, warm_pool: None, vm_home: Path
) -> None:
    async with start_kernel() as (manager, client):
        session = Session(client)
        await session.run("%checkpoint a")
        vm = vm_of(manager)
        with stalled_pool():
            session.client.execute("%rollback a")
            await session.drain(0.5)
            os.kill(pid_of(manager), signal.SIGKILL)
        await eventually(lambda: ended(vm), 60.0, "its VM has gone")
    live = vm_home / "checkpoints" / "live"
    await eventually(lambda: list(live.iterdir()) == [], 60.0, "its checkpoints have gone")
    async with start_kernel() as (_, client):
        assert (await Session(client).run("1 + 1")).value == "2"


async def test_without_the_pool_service_there_are_no_checkpoints_and_the_session_goes_on(
    start_kernel: StartKernel, warm_pool: None
) -> None:
    async with start_kernel() as (_, client):
        session = Session(client)
        await session.run("x = 1")
        os.kill(service_pid(), signal.SIGKILL)
        await asyncio.sleep(0.5)
        name, message = error_of(await session.run("%checkpoint a"))
        assert name == "PoolUnavailable"
        assert "goes on without it" in message
        assert (await session.run("x")).value == "1"
    assert service_pid(), "the next service clears the VM away"
    with closing(PoolConnection.open()) as connection:
        connection.acquire().stream.close()  # and is warm for the tests that follow
