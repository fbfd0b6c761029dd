"""Interrupting whatever a cell does, and a cell that has not begun."""

from __future__ import annotations

import os
import signal

import pytest
from jupyter_client.manager import AsyncKernelManager

from tests.kernel.session import Cell, Session, unready_kernel
from tests.kernel.stalled import stalled_pool

RUNNING = {
    "sleep": "import time\nprint('begun', flush=True)\ntime.sleep(60)",
    "busy loop": "print('begun', flush=True)\nwhile True: pass",
    "child process": "import subprocess\nprint('begun', flush=True)\nsubprocess.run(['sleep', '60'])",
    "shell": "print('begun', flush=True)\n!sleep 60",
    "async": "import asyncio\nprint('begun', flush=True)\nawait asyncio.sleep(60)",
}


async def interrupted(manager: AsyncKernelManager, session: Session, msg_id: str) -> Cell:
    """Interrupt as Jupyter does; the cell must end before it would by itself."""
    await manager.interrupt_kernel()
    return await session.finish(msg_id)


@pytest.mark.parametrize("code", RUNNING.values(), ids=RUNNING)
async def test_a_running_cell_is_interrupted_and_the_next_one_runs(
    kernel: tuple[AsyncKernelManager, Session], code: str
) -> None:
    manager, session = kernel
    msg_id = session.client.execute(code)
    await session.until_output(msg_id, "begun")
    cell = await interrupted(manager, session, msg_id)
    if "!" not in code:  # IPython ends a shell command quietly
        assert cell.reply["content"]["ename"] in ("KeyboardInterrupt", "CancelledError")
    assert (await session.run("'alive'")).value == "'alive'"


LOOPS_IN_C = ["sum(range(10**12))", "max(range(10**30, 10**31))", "set().update(map(abs, itertools.repeat(0)))"]


@pytest.mark.parametrize("code", LOOPS_IN_C)
async def test_a_loop_in_c_is_interrupted_though_no_signal_can(
    kernel: tuple[AsyncKernelManager, Session], code: str
) -> None:
    manager, session = kernel
    # flush() returns when the text is on its way to the thread that sends it: leave that a moment with the GIL
    begin = "import itertools, time\nprint('begun', flush=True)\ntime.sleep(0.5)\nx = 'before'"
    msg_id = session.client.execute(f"{begin}\nx = {code}")
    await session.until_output(msg_id, "begun")
    await session.drain(1.0)  # it is in the loop then
    cell = await interrupted(manager, session, msg_id)
    assert cell.reply["content"]["ename"] == "KeyboardInterrupt"
    # the loop's wrong result has gone nowhere, and iterators are whole again
    after = await session.run("x, sum(range(10)), list(range(3)), [*itertools.repeat(7, 2)]")
    assert after.value == "('before', 45, [0, 1, 2], [7, 7])"


async def test_an_interrupt_does_not_touch_a_thread_that_computes(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    code = """
import threading, time
wrong = []
def count():
    while not done:
        if sum(range(1000)) != 499500 or [*range(4)] != [0, 1, 2, 3]:
            wrong.append(1)
        time.sleep(0.001)
done = False
thread = threading.Thread(target=count)
thread.start()
print('begun', flush=True)
time.sleep(100)
"""
    for _ in range(3):
        msg_id = session.client.execute(code.replace("done = False", "done = False; wrong.clear()"))
        await session.until_output(msg_id, "begun")
        await interrupted(manager, session, msg_id)
    assert (await session.run("time.sleep(0.5); done = True; thread.join(); wrong")).value == "[]"


async def test_a_child_process_does_not_survive_the_interrupt(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    # Begun when the child is: a signal that falls into the starting of a process leaves it behind in any CPython.
    code = "import subprocess\nchild = subprocess.Popen(['sleep', '4321'])\nprint('begun', flush=True)\nchild.wait()"
    msg_id = session.client.execute(code)
    await session.until_output(msg_id, "begun")
    await interrupted(manager, session, msg_id)
    found = await session.run("print(subprocess.run(['pgrep', '-f', 'sleep 4321'], capture_output=True).stdout)")
    assert found.stream() == "b''\n"


COMMAND_LINES = """
import pathlib
def command_lines():
    for pid in filter(str.isdigit, (p.name for p in pathlib.Path('/proc').iterdir())):
        try:
            yield pathlib.Path(f'/proc/{pid}/cmdline').read_text()
        except OSError:
            pass
kernels = lambda: [line for line in command_lines() if line == pathlib.Path('/proc/self/cmdline').read_text()]
"""


async def test_an_interrupt_of_a_command_that_is_being_started_leaves_no_process(
    kernel: tuple[AsyncKernelManager, Session],
) -> None:
    manager, session = kernel
    await session.run(COMMAND_LINES)
    for pause_s in (0, 0, 0.01, 0.02, 0.04, 0.08):
        msg_id = session.client.execute("print('begun', flush=True)\n!sleep 4321")
        await session.until_output(msg_id, "begun")
        await session.drain(pause_s)
        cell = await interrupted(manager, session, msg_id)
        # where it strikes before the command is started it is an exception, later IPython ends the command quietly
        assert cell.reply["content"].get("ename", "KeyboardInterrupt") == "KeyboardInterrupt"
    left = await session.run("len(kernels()), [line for line in command_lines() if '4321' in line]")
    assert left.value == "(1, [])"


async def test_a_forked_process_that_leaves_its_cell_ends_there(session: Session) -> None:
    await session.run(COMMAND_LINES)
    await session.run("import os\nchild = os.fork()\nif child == 0: print('child')")
    assert (await session.run("os.waitpid(child, 0) == (child, 0), len(kernels())")).value == "(True, 1)"


async def test_a_cell_that_waits_for_input_is_interrupted(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    msg_id = session.client.execute("input('? ')")
    await session.input_request()
    cell = await interrupted(manager, session, msg_id)
    assert cell.reply["content"]["ename"] == "KeyboardInterrupt"
    assert (await session.run("1")).value == "1"


async def test_the_interrupt_is_answered_and_harmless_when_nothing_runs(session: Session) -> None:
    answer = await session.ask("interrupt_request", {}, "control")
    assert answer.reply["msg_type"] == "interrupt_reply"
    assert answer.status == "ok"
    assert answer.types == ["busy", "idle"]
    assert (await session.run("2")).value == "2"


async def test_sigint_to_the_kernel_process_interrupts_the_cell(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    msg_id = session.client.execute(RUNNING["sleep"])
    await session.until_output(msg_id, "begun")
    os.kill(manager.provisioner.pid, signal.SIGINT)  # type: ignore[union-attr]
    assert (await session.finish(msg_id)).reply["content"]["ename"] == "KeyboardInterrupt"


async def test_cells_that_wait_for_a_vm_are_cancelled(kernelspec: str, warm_pool: None) -> None:
    with stalled_pool() as go_on:
        async with unready_kernel(kernelspec) as (manager, session):
            await session.client.wait_for_ready(timeout=60)
            ids = [session.client.execute(code) for code in ("print('not run')", "print('nor this')")]
            await session.until_output(ids[0], "Waiting for a virtual machine")
            await manager.interrupt_kernel()
            first, second = [await session.finish(msg_id) for msg_id in ids]
            assert first.reply["content"]["ename"] == "KeyboardInterrupt"
            assert first.number == 1
            assert second.status == "aborted"
            go_on()
            after = await session.run("'after'")
            assert (after.value, after.number) == ("'after'", 2)
