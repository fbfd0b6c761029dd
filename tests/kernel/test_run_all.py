"""Restart and run all: every cell of a notebook is sent at once to a kernel that has only just been started."""

from __future__ import annotations

from jupyter_client.manager import AsyncKernelManager

from tests.kernel.session import Session

#: code, what it prints, what it has as its result
NOTEBOOK = [
    ("import asyncio\nprint('one')", "one\n", None),
    ("x = 6 * 7\nx", "", "42"),
    ("%vm_info", "", None),
    ("await asyncio.sleep(0.05)\nprint('four')\nx", "four\n", "42"),
    ("for i in range(200):\n    print(i, flush=True)", "".join(f"{i}\n" for i in range(200)), None),
    ("%%bash\necho six", "six\n", None),
    ("'the end'", "", "'the end'"),
]


async def test_restart_and_run_all_keeps_every_output(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    session.client.execute("while True: pass")
    for _ in range(3):
        await manager.restart_kernel()
        ids = [session.client.execute(code) for code, _, _ in NOTEBOOK]
        for number, (msg_id, (code, printed, result)) in enumerate(zip(ids, NOTEBOOK, strict=True), start=1):
            cell = await session.finish(msg_id)
            assert (cell.status, cell.number) == ("ok", number), code
            assert (cell.types[:2], cell.types[-1]) == (["busy", "execute_input"], "idle"), code
            assert cell.types.count("idle") == 1
            assert cell.stream() == printed
            assert [each["data"]["text/plain"] for each in cell.of("execute_result")] == [result] * (result is not None)
