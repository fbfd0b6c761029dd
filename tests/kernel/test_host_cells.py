"""Host magics in a session: evaluated on the host, in their place among the guest's cells."""

from __future__ import annotations

import json

from jupyter_client.manager import AsyncKernelManager

from tests.kernel.session import Session, unready_kernel
from tests.kernel.stalled import stalled_pool
from tests.kernel.test_lifecycle import pid_of


async def test_pool_status_shows_this_sessions_vm(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    cell = await session.run("%pool_status")
    assert (cell.status, cell.number) == ("ok", 1)
    assert cell.types == ["busy", "execute_input", "display_data", "idle"]
    data = cell.of("display_data")[0]["data"]
    assert "this session" in data["text/plain"]
    assert "<table>" in data["text/html"]
    for word in ("warm", "leased", "booting", "acquire p50 / p95", "MiB"):
        assert word in data["text/plain"]
        assert word in data["text/html"]
    status = json.loads((await session.run("%pool_status --json")).of("display_data")[0]["data"]["text/plain"])
    assert pid_of(manager) in [(vm["lease"] or {}).get("pid") for vm in status["vms"]]


async def test_vm_info_names_what_the_guest_sees_too(session: Session) -> None:
    info = json.loads((await session.run("\n  %vm_info --json")).of("display_data")[0]["data"]["text/plain"])
    assert (await session.run("import socket; socket.gethostname()")).value == repr(info["name"])
    assert info["profile"] == "default"
    assert info["accelerator"] in ("kvm", "tcg")
    assert info["accelerator_reason"].endswith(".")
    table = (await session.run("%vm_info")).of("display_data")[0]["data"]
    assert info["name"] in table["text/plain"]
    assert info["name"] in table["text/html"]


async def test_cells_of_both_kinds_keep_order_and_numbers(fresh_session: Session) -> None:
    codes = ["print('a')", "%vm_info", "print('b')", "%pool_status", "import time; time.sleep(0.2); print('c')"]
    ids = [fresh_session.client.execute(code) for code in [*codes, "%vm_info", "4 + 4"]]
    cells = [await fresh_session.finish(msg_id) for msg_id in ids]
    assert [cell.number for cell in cells] == [1, 2, 3, 4, 5, 6, 7]
    arrival = [(m["header"]["date"], ids.index(parent)) for parent in ids for m in fresh_session.iopub[parent]]
    assert [place for _, place in sorted(arrival)] == sorted(place for _, place in arrival)
    assert "output_hidden" not in fresh_session.iopub
    assert set(fresh_session.iopub) <= {*ids, ""}, "markers are not to be seen"


async def test_an_unknown_option_gets_a_usage_message(session: Session) -> None:
    for code in ("%pool_status --nosuch", "%vm_info extra", "%pool_status 'unclosed", "%vm_info --help"):
        cell = await session.run(code)
        assert cell.status == "ok"
        assert cell.of("display_data")[0]["data"]["text/plain"].startswith("usage: %")


async def test_a_cell_with_more_in_it_is_an_error_and_stops_what_is_queued(session: Session) -> None:
    ids = [session.client.execute(code) for code in ("%vm_info\nx = 1", "y = 2", "%vm_info")]
    failed, *behind = [await session.finish(msg_id) for msg_id in ids]
    assert failed.reply["content"]["ename"] == "UsageError"
    assert failed.types == ["busy", "execute_input", "error", "idle"]
    assert [cell.status for cell in behind] == ["aborted", "aborted"]
    assert (await session.run("x")).reply["content"]["ename"] == "NameError"
    assert (await session.run("%vm_info\n\n  \n")).status == "ok"


async def test_a_magic_of_the_same_name_elsewhere_in_a_cell_is_the_guests(session: Session) -> None:
    cell = await session.run("print('guest')\n%vm_info")
    assert cell.stream("stdout") == "guest\n"
    assert "vm_info` not found" in cell.stream("stderr")


async def test_nothing_of_a_host_cell_can_be_found_in_the_guest(session: Session) -> None:
    await session.run("%pool_status --json")
    found = await session.run("'pool_status' in str(In) + str(globals()) + str(get_ipython().history_manager.__dict__)")
    # the question itself is in In and in the history
    assert found.value == "True"
    assert (await session.run("In[1]")).value == "''"


async def test_silent_host_cells_count_nothing(fresh_session: Session) -> None:
    cell = await fresh_session.run("%vm_info", silent=True)
    assert "execute_input" not in cell.types
    assert (await fresh_session.run("%vm_info", store_history=False)).status == "ok"
    assert (await fresh_session.run("1")).number == 1


async def test_a_thread_that_prints_after_a_host_cell_is_heard(session: Session) -> None:
    await session.run(
        "import threading, time\n"
        "def late():\n    time.sleep(1)\n    print('late', flush=True)\n"
        "threading.Thread(target=late).start()"
    )
    await session.run("%vm_info")
    await session.until(
        lambda: any(session.printed(parent) for parent in session.iopub), "output of the thread", timeout_s=10
    )


async def test_host_cells_work_while_the_vm_is_on_its_way(kernelspec: str, warm_pool: None) -> None:
    with stalled_pool() as go_on:
        async with unready_kernel(kernelspec) as (_, session):
            await session.client.wait_for_ready(timeout=60)
            cell = await session.run("%vm_info")
            assert cell.number == 1
            assert "no virtual machine" in cell.of("display_data")[0]["data"]["text/plain"]
            msg_id = session.client.execute("2")
            behind = session.client.execute("%vm_info")
            go_on()
            assert (await session.finish(msg_id)).number == 2
            told = await session.finish(behind)
            assert told.number == 3
            assert "tcg" in str(told.of("display_data")) or "kvm" in str(told.of("display_data"))
