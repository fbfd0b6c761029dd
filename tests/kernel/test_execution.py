"""What the guest's ipykernel does, a client of this kernel sees: cells, completion, inspection, history, input."""

from __future__ import annotations

import os
import signal

from jupyter_client.manager import AsyncKernelManager

from tests.kernel.session import Session, connected, vm_of


async def test_a_cell_is_busy_prints_has_a_result_and_is_idle(session: Session) -> None:
    cell = await session.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")
    assert (cell.status, cell.number, cell.value) == ("ok", 1, "42")
    assert (cell.stream("stdout"), cell.stream("stderr")) == ("out\n", "err\n")
    assert cell.types[:2] == ["busy", "execute_input"]
    assert cell.types[-1] == "idle"
    assert cell.types.count("idle") == 1


async def test_a_cell_is_busy_before_a_slow_guest_says_so(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    vm = vm_of(manager)
    os.kill(vm, signal.SIGSTOP)
    try:
        first, second = session.client.execute("1 + 1"), session.client.execute("2 + 2")
        await session.until(lambda: first in session.iopub, "busy", 10.0)
        await session.drain(0.3)
        assert [message["content"] for message in session.iopub[first]] == [{"execution_state": "busy"}]
        assert second not in session.iopub
    finally:
        os.kill(vm, signal.SIGCONT)
    for msg_id in (first, second):
        assert (await session.finish(msg_id)).types == ["busy", "execute_input", "execute_result", "idle"]


async def test_all_messages_of_a_launch_carry_one_session_id(session: Session) -> None:
    cells = [await session.run("print(1)"), await session.run("%vm_info"), await session.ask("comm_info_request", {})]
    headers = [message["header"] for cell in cells for message in [*cell.iopub, cell.reply]]
    assert len({header["session"] for header in headers}) == 1
    assert len({header["msg_id"] for header in headers}) == len(headers)


async def test_rich_display(session: Session) -> None:
    cell = await session.run(
        "from IPython.display import HTML, clear_output, display\n"
        "handle = display(HTML('<b>one</b>'), display_id=True)\n"
        "handle.update(HTML('<b>two</b>'))\n"
        "clear_output(wait=True)\n"
        "{'a': 1}"
    )
    assert cell.of("display_data")[0]["data"]["text/html"] == "<b>one</b>"
    assert cell.of("update_display_data")[0]["data"]["text/html"] == "<b>two</b>"
    assert cell.of("clear_output") == [{"wait": True}]
    assert cell.value == "{'a': 1}"


async def test_a_plot_is_an_image(session: Session) -> None:
    cell = await session.run("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    assert cell.status == "ok"
    assert cell.of("display_data")[0]["data"]["image/png"].startswith("iVBOR")


async def test_an_error_has_a_traceback_and_aborts_what_is_queued(fresh_session: Session) -> None:
    ids = [fresh_session.client.execute(code) for code in ("1 / 0", "print('not run')", "%vm_info", "2")]
    failed, *behind = [await fresh_session.finish(msg_id) for msg_id in ids]
    assert failed.reply["content"]["ename"] == "ZeroDivisionError"
    assert any("1" in line and "0" in line for line in failed.of("error")[0]["traceback"])
    assert [cell.status for cell in behind] == ["aborted"] * 3
    assert [cell.types for cell in behind] == [["busy", "idle"]] * 3
    assert (await fresh_session.run("3")).number == 2


async def test_silent_cells_and_user_expressions(fresh_session: Session) -> None:
    silent = await fresh_session.run("x = 1", silent=True)
    assert "execute_input" not in silent.types
    cell = await fresh_session.run("y = 2", user_expressions={"sum": "x + y"})
    assert cell.number == 1
    assert cell.reply["content"]["user_expressions"]["sum"]["data"]["text/plain"] == "3"


async def test_ten_megabytes_of_output_arrive_whole_before_idle(session: Session) -> None:
    cell = await session.run("for i in range(10):\n    print('x' * 1_000_000)")
    assert len(cell.stream()) == 10_000_010
    assert cell.types[-1] == "idle"


async def test_text_without_a_utf8_form_does_not_break_the_client(session: Session) -> None:
    cell = await session.run(r"print('a\udcffb'); print('c')")
    assert cell.status == "ok"
    assert cell.stream().endswith("c\n")


async def test_a_thread_prints_to_its_cell_after_the_cell_has_ended(session: Session) -> None:
    code = "import threading\nthreading.Timer(0.5, lambda: print('late')).start()"
    msg_id = session.client.execute(code)
    await session.finish(msg_id)
    await session.until_output(msg_id, "late")


async def test_completion_knows_types(session: Session) -> None:
    cell = await session.ask("complete_request", {"code": "import os; os.path.joi", "cursor_pos": 22})
    content = cell.reply["content"]
    assert (content["matches"], content["cursor_start"]) == (["join"], 19)
    assert content["metadata"]["_jupyter_types_experimental"][0]["type"] == "function"


async def test_inspection(session: Session) -> None:
    cell = await session.ask("inspect_request", {"code": "len(", "cursor_pos": 3, "detail_level": 0})
    assert cell.reply["content"]["found"] is True
    assert "Return the number of items" in cell.reply["content"]["data"]["text/plain"]


async def test_history_keeps_the_numbers_of_cells(fresh_session: Session) -> None:
    await fresh_session.run("first = 1")
    await fresh_session.run("%vm_info")
    await fresh_session.run("third = 3")
    request = {"hist_access_type": "range", "output": False, "raw": True, "session": 0, "start": 1, "stop": 4}
    history = (await fresh_session.ask("history_request", request)).reply["content"]["history"]
    assert [line for _, _, line in history] == ["first = 1", "", "third = 3"]
    assert (await fresh_session.run("In[3]")).value == "'third = 3'"


async def test_is_complete(session: Session) -> None:
    async def state(code: str) -> str:
        return str((await session.ask("is_complete_request", {"code": code})).reply["content"]["status"])

    assert [await state(code) for code in ("1", "if x:", "1 +* 2")] == ["complete", "incomplete", "invalid"]


async def test_input_goes_to_the_client_whose_cell_asks(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, first = kernel
    async with connected(manager) as second:
        for session, name in ((first, "first"), (second, "second"), (first, "again")):
            msg_id = session.client.execute(
                "import getpass\nprint('got', input('name? '), getpass.getpass('secret? '))"
            )
            question = await session.input_request()
            assert question["content"] == {"prompt": "name? ", "password": False}
            assert question["parent_header"]["msg_id"] == msg_id
            session.client.input(name)
            assert (await session.input_request())["content"]["password"] is True
            session.client.input("hunter2")
            assert (await session.finish(msg_id)).stream() == f"got {name} hunter2\n"
        assert not await first.client.stdin_channel.msg_ready()
        assert not await second.client.stdin_channel.msg_ready()


async def test_both_clients_see_all_output_and_only_their_own_replies(
    kernel: tuple[AsyncKernelManager, Session],
) -> None:
    manager, first = kernel
    async with connected(manager) as second:
        msg_id = second.client.execute("print('hello')")
        await second.finish(msg_id)
        await first.until_output(msg_id, "hello")
        assert msg_id not in first.replies


async def test_a_subshell_runs_beside_a_busy_cell(session: Session) -> None:
    info = await session.ask("kernel_info_request", {})
    assert "kernel subshells" in info.reply["content"]["supported_features"]
    created = await session.ask("create_subshell_request", {}, "control")
    busy = session.client.execute("import time\nwhile not globals().get('done'):\n    time.sleep(0.01)\nprint('end')")
    request = {"code": "done = True", "silent": False}
    beside = await session.ask("execute_request", request, subshell_id=created.reply["content"]["subshell_id"])
    assert beside.status == "ok"
    assert (await session.finish(busy)).stream() == "end\n"


async def test_the_debugger_answers(session: Session) -> None:
    info = await session.ask("debug_request", {"type": "request", "seq": 1, "command": "debugInfo"}, "control")
    assert info.reply["content"]["success"] is True
    assert info.reply["msg_type"] == "debug_reply"


async def test_kernel_info_of_the_guest_and_of_the_host_agree(session: Session) -> None:
    info = (await session.ask("kernel_info_request", {})).reply["content"]
    assert info["language_info"]["name"] == "python"
    assert (await session.run("import platform; platform.python_version()")).value == repr(
        info["language_info"]["version"]
    )


async def test_connect_request_tells_the_hosts_ports(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    content = (await session.ask("connect_request", {})).reply["content"]
    assert content["shell_port"] == manager.shell_port
    assert content["iopub_port"] == manager.iopub_port
