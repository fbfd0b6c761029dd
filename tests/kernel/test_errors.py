"""What happens to the cells behind an error, to cells that are not to be shown, and to expressions about them."""

from __future__ import annotations

from jupyter_client.manager import AsyncKernelManager

from tests.kernel.session import Session, connected

WAIT = "import threading\nstop = threading.Event()\nprint('begun')\nstop.wait(100)\n1 / 0"


async def test_all_cells_that_are_queued_when_one_fails_are_aborted(
    kernel: tuple[AsyncKernelManager, Session],
) -> None:
    """Those of other clients as well; and a cell that is sent once the error is known runs."""
    manager, first = kernel
    created = await first.ask("create_subshell_request", {}, "control")
    async with connected(manager) as second:
        failing = first.client.execute(WAIT)
        await first.until_output(failing, "begun")
        queued = [(client, client.client.execute(f"print({n})")) for n in range(10) for client in (first, second)]
        # what was sent before it to the same shell has been received when this has been answered
        for client in (first, second):
            await client.ask("execute_request", {"code": "1"}, subshell_id=created.reply["content"]["subshell_id"])
        await first.ask("execute_request", {"code": "stop.set()"}, subshell_id=created.reply["content"]["subshell_id"])
        assert (await first.finish(failing)).reply["content"]["ename"] == "ZeroDivisionError"
        for client, msg_id in queued:
            cell = await client.finish(msg_id)
            # a cell that was announced is announced again if another's status came between
            assert (cell.status, [*dict.fromkeys(cell.types)]) == ("aborted", ["busy", "idle"])
        assert (await second.run("'after'")).value == "'after'"


async def test_cells_behind_an_error_run_if_the_client_says_so(session: Session) -> None:
    ids = [session.client.execute(code, stop_on_error=False) for code in ("1 / 0", "%vm_info", "print('run')")]
    failed, host_cell, behind = [await session.finish(msg_id) for msg_id in ids]
    assert failed.status == "error"
    assert host_cell.status == "ok"
    assert behind.stream() == "run\n"
    assert (failed.number, host_cell.number, behind.number) == (1, 2, 3)


async def test_an_error_carries_its_traceback_in_reply_and_output(session: Session) -> None:
    cell = await session.run("def inner():\n    raise ValueError('on purpose')\ninner()")
    shown, content = cell.of("error")[0], cell.reply["content"]
    assert (shown["ename"], shown["evalue"]) == ("ValueError", "on purpose")
    assert (content["ename"], content["evalue"]) == ("ValueError", "on purpose")
    assert content["traceback"] == shown["traceback"]
    assert "inner" in "".join(shown["traceback"])


async def test_a_syntax_error_and_a_raised_exit(session: Session) -> None:
    assert (await session.run("1 +* 2")).reply["content"]["ename"] == "SyntaxError"
    assert (await session.run("raise SystemExit(3)")).reply["content"]["ename"] == "SystemExit"
    assert (await session.run("1")).value == "1"


async def test_a_silent_cell_shows_nothing_of_itself(fresh_session: Session) -> None:
    cell = await fresh_session.run("x = 1\nprint('printed')\nx", silent=True)
    assert cell.types == ["busy", "stream", "idle"]
    failed = await fresh_session.run("1 / 0", silent=True)
    assert failed.status == "error"
    behind = [
        fresh_session.client.execute(code, silent=silent) for code, silent in (("1 / 0", True), ("'runs'", False))
    ]
    assert [(await fresh_session.finish(msg_id)).status for msg_id in behind] == ["error", "ok"]
    assert (await fresh_session.run("x")).number == 2


async def test_a_cell_that_is_not_to_be_remembered(fresh_session: Session) -> None:
    await fresh_session.run("kept = 1")
    cell = await fresh_session.run("forgotten = 2\nforgotten", store_history=False)
    assert cell.value == "2"
    after = await fresh_session.run("In, len(In)")
    assert after.number == 2
    request = {"hist_access_type": "tail", "n": 5, "output": False, "raw": True}
    lines = [line for _, _, line in (await fresh_session.ask("history_request", request)).reply["content"]["history"]]
    assert lines[-2:] == ["kept = 1", "In, len(In)"]


async def test_user_expressions_have_values_and_errors_of_their_own(session: Session) -> None:
    expressions = {"good": "x + 1", "bad": "1 / 0", "rich": "HTML('<b>x</b>')"}
    cell = await session.run("from IPython.display import HTML\nx = 1", user_expressions=expressions)
    assert cell.status == "ok"
    found = cell.reply["content"]["user_expressions"]
    assert found["good"]["data"]["text/plain"] == "2"
    assert (found["bad"]["status"], found["bad"]["ename"]) == ("error", "ZeroDivisionError")
    assert found["rich"]["data"]["text/html"] == "<b>x</b>"
    failed = await session.run("1 / 0", user_expressions={"good": "1"})
    assert failed.reply["content"]["user_expressions"] == {}


async def test_usage_is_that_of_the_vm(session: Session) -> None:
    """JupyterLab's resource display."""
    await session.run("import os, socket\nblock = bytearray(50_000_000)")
    usage = (await session.ask("usage_request", {}, "control")).reply
    assert usage["msg_type"] == "usage_reply"
    content = usage["content"]
    assert content["kernel_memory"] > 50_000_000
    assert content["cpu_count"] >= 1
    assert 128 << 20 < content["host_virtual_memory"]["total"] < 4 << 30
    assert (await session.run("socket.gethostname(), os.getpid()")).value == str((content["hostname"], content["pid"]))
