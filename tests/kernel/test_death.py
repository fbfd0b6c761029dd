"""However a session ends before its time, the notebook says why, and Jupyter can go on with a fresh VM."""

from __future__ import annotations

import asyncio
import os
import re
import signal

import nbformat
import pytest
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from jupyter_client.ioloop.restarter import AsyncIOLoopKernelRestarter
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets import Float

from tests.conftest import eventually
from tests.kernel.session import Session, has_ended, pid_of, vm_of

#: code, and what the notebook says
ENDS = {
    "os._exit": ("import os; os._exit(7)", "has ended itself, with status 7"),
    "segfault": ("import ctypes; ctypes.string_at(0)", r"has crashed \(SIGSEGV\)"),
    "abort": ("import os; os.abort()", r"has crashed \(SIGABRT\)"),
    "kill": ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    "out of memory": (
        "blocks = []\nwhile True: blocks.append(bytearray(1 << 24))",
        "ran out of memory. The VM has 384 MiB",
    ),
}


@pytest.mark.parametrize(("code", "said"), ENDS.values(), ids=ENDS)
async def test_the_end_of_python_is_told_with_its_cause(
    kernel: tuple[AsyncKernelManager, Session], code: str, said: str
) -> None:
    manager, session = kernel
    running = session.client.execute("print('last words', flush=True)\nimport time; time.sleep(0.5)\n" + code)
    queued = session.client.execute("1")
    cells = [await session.finish(msg_id, timeout_s=60) for msg_id in (running, queued)]
    assert cells[0].stream() == "last words\n"
    for cell in cells:
        _ends_in_vm_died(cell.of("error")[0], said)
        assert cell.reply["content"]["ename"] == "VMDied"
        assert cell.types.count("idle") == 1
        assert cell.types[-1] == "idle"
    await has_ended(manager)
    assert await manager.provisioner.wait() == 1  # type: ignore[union-attr]  # for Jupyter to restart it


async def test_a_killed_qemu_is_told_as_that(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    running = session.client.execute("input('? ')")
    await session.input_request()
    os.kill(vm_of(manager), signal.SIGKILL)
    cell = await session.finish(running)
    _ends_in_vm_died(cell.of("error")[0], "its QEMU process was killed by SIGKILL")


async def test_a_death_while_nothing_runs_ends_the_kernel_process(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    await session.run("import os, threading, time\nthreading.Timer(1, os._exit, [3]).start()")
    await has_ended(manager)


async def test_a_death_under_a_host_cell_ends_it_too(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    msg_ids = [session.client.execute("import os; os.kill(os.getpid(), 9)"), session.client.execute("%pool_status")]
    for msg_id in msg_ids:
        cell = await session.finish(msg_id)
        assert (cell.status, cell.types.count("idle")) == ("error", 1)
    await has_ended(manager)


@pytest.mark.parametrize("code", [ENDS["os._exit"][0], ENDS["segfault"][0]])
async def test_nbclient_raises_and_never_hangs(kernelspec: str, warm_pool: None, code: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("1")])
    client = NotebookClient(notebook, kernel_name=kernelspec, timeout=120)
    with pytest.raises((DeadKernelError, CellExecutionError)):
        await asyncio.wait_for(client.async_execute(), 60)


async def test_nbclient_raises_when_the_vm_is_killed(kernelspec: str, warm_pool: None) -> None:
    cell = nbformat.v4.new_code_cell("print('begun', flush=True)\nimport time; time.sleep(600)")
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), kernel_name=kernelspec, timeout=300)
    running = asyncio.ensure_future(client.async_execute())
    await eventually(lambda: bool(cell.get("outputs")), 60, "the cell runs")
    assert client.km is not None
    os.kill(vm_of(client.km), signal.SIGKILL)
    with pytest.raises((DeadKernelError, CellExecutionError)):
        await asyncio.wait_for(running, 60)


def _ends_in_vm_died(error: dict[str, str], said: str) -> None:
    assert error["ename"] == "VMDied"
    assert re.search(said, error["evalue"])
    assert "fresh VM" in error["evalue"]


async def test_jupyter_restarts_a_dead_kernel_and_it_works(kernelspec: str, warm_pool: None) -> None:
    manager = AsyncIOLoopKernelManager(kernel_name=kernelspec, autorestart=True)
    manager.restarter_class = QuickRestarter
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        session = Session(client)
        await session.run("x = 1")
        first = pid_of(manager)
        session.client.execute("import os; os._exit(1)")
        await eventually(lambda: manager.provisioner.pid not in (first, None), 60, "a new kernel process")
        # a client that goes on over the same channels, as JupyterLab's server does
        await client.wait_for_ready(timeout=60)
        cell = await session.run("print('x' in globals())")
        assert cell.stream() == "False\n"
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


class QuickRestarter(AsyncIOLoopKernelRestarter):
    """Jupyter's own, which looks more often."""

    time_to_dead = Float(0.5)
