"""Hostile cells on real VMs, the guest's root included: neighbours work on, the host stays as it was, the next VM is
new.

What they do is in tests/hostile/attacks.py. How much a neighbour's latency suffers is for ``make bench`` to measure on
a quiet machine; here it must only go on being served.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager

import guest_agent
from tests.conftest import CONFIG, StartKernel, eventually, qemus, service_pid, stop_service, write_config
from tests.hostile.attacks import ATTACKS, Attack
from tests.hostile.neighbour import Neighbour, neighbour, summary
from tests.kernel.session import Cell, Session
from tests.pool import rest
from tests.vm import walls
from vm_kernel.kernel.escalation import SAME_PRESS_S

#: by then an attack has ended
ATTACK_TIMEOUT_S = 60.0
#: by then a VM that can fall silent is called that
SILENT_AFTER_S = 8.0
#: a neighbour's cells take at most so many times as long as without attacks, in the middle. A machine that tests share
#: with others tells no more; what a quiet one says is in the README
MOST_OF_QUIET = 4.0
#: what logs may grow by while one attack runs
LOGS_BYTES = 1 << 20
ROOT_AGENT = Path(__file__).parents[1] / "hostile" / "root_agent.py"
MARK = "/tmp/an-attacker-was-here"


@pytest.fixture(scope="module")
def root_home(vm_home: Path) -> Iterator[Path]:
    """A pool whose guests let anybody become root, in a home of its own."""
    home = Path(tempfile.mkdtemp(prefix="vmk-"))
    home.chmod(0o755)
    package = home / "code" / "guest_agent"
    shutil.copytree(Path(guest_agent.__file__).parent, package)
    (package / "agent.py").rename(package / "honest_agent.py")
    shutil.copy(ROOT_AGENT, package / "agent.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VM_KERNEL_HOME", str(home / "home"))
        patch.setenv("PYTHONPATH", str(home / "code"))
        write_config(CONFIG + "c.PoolConfig.min_warm = 1\nc.PoolConfig.preload = []")
        yield home
        stop_service()
        write_config(CONFIG)
    assert not qemus(home)
    shutil.rmtree(home)


@pytest.mark.timeout(600)
async def test_hostile_cells(root_home: Path, start_kernel: StartKernel, tmp_path: Path) -> None:
    home = root_home / "home"
    before = await asyncio.to_thread(rest.used_and_at_rest, home)
    report = []
    async with start_kernel() as (manager, client), start_kernel() as (quiet, _):
        session = Session(client)
        with neighbour(quiet.connection_file, tmp_path / "neighbour") as beside:
            await eventually(lambda: len(beside.between(0, time.monotonic())) >= 20, 60.0, "the neighbour is measured")
            quiet = beside.between(0, time.monotonic())
            report.append(f"quiet: {summary(quiet)}")
            attacks_begin = time.monotonic()
            for attack in ATTACKS:
                begin = time.monotonic()
                report.append(f"{attack.name}: {await _attack(attack, manager, session, home)}")
                await _served(beside, begin)
                report[-1] += f"; neighbour {summary(beside.between(begin, time.monotonic()))}"
            felt = beside.between(attacks_begin, time.monotonic())
    print("\n".join(report))  # for pytest -s, and beside a failure
    assert statistics.median(felt) < MOST_OF_QUIET * statistics.median(quiet)
    await asyncio.to_thread(rest.assert_clean, home, before)


async def _attack(attack: Attack, manager: AsyncKernelManager, session: Session, home: Path) -> str:
    """Run it, look at the host, and take a new VM. Returns how it ended."""
    pid, disk = service_pid(), _disk(home)
    seen = await session.run(f"import os; print(os.path.exists({MARK!r}), os.getppid()); open({MARK!r}, 'w').close()")
    assert seen.stream() == "False 1\n", f"before {attack.name} the VM was not a new one"
    end = await _run(attack, manager, session)
    assert end in attack.ends, f"{attack.name}: {end}"
    assert service_pid() == pid, f"{attack.name} ended the service"
    assert _disk(home) - disk < LOGS_BYTES, f"{attack.name} filled the host's disk"
    assert all(walls.status(qemu.pid)["Seccomp"] == "2" for qemu in qemus(home) if qemu.is_running())
    await manager.restart_kernel(now=True)
    session.iopub.clear()
    session.replies.clear()
    await session.client.wait_for_ready(timeout=ATTACK_TIMEOUT_S)
    return end


async def _run(attack: Attack, manager: AsyncKernelManager, session: Session) -> str:
    """How it ended."""
    timeout_s = SILENT_AFTER_S if "silent" in attack.ends else ATTACK_TIMEOUT_S
    running = session.client.execute(attack.cell)
    try:
        cell = await session.finish(running, timeout_s)
        if not _died(cell):
            running = session.client.execute("print(6 * 7)")
            cell = await session.finish(running, timeout_s)
    except AssertionError:
        if "execute_input" in [message["msg_type"] for message in session.iopub.get(running, [])]:
            await _give_up(manager, session, running)
        return "silent"
    if error := _died(cell):
        assert re.search(attack.said, error["evalue"]), f"{attack.name}: {error['evalue']}"
        return "ends"
    assert cell.stream() == "42\n"
    return "recovers"


async def _give_up(manager: AsyncKernelManager, session: Session, running: str) -> None:
    """What a person does with a cell that has begun and does not end: the third interrupt brings a fresh VM.

    A guest that eats a processor can keep a kernel on a slow machine from counting the third in time: then it is the
    first again, and whoever sits there goes on pressing.
    """
    for _ in range(4 * 3):
        await manager.interrupt_kernel()
        await session.drain(2 * SAME_PRESS_S)
        if running in session.replies:
            break
    cell = await session.finish(running, ATTACK_TIMEOUT_S)
    assert "restarted in a fresh virtual machine" in cell.stream("stderr")


def _died(cell: Cell) -> dict[str, Any] | None:
    """The message of a session that has ended."""
    content: dict[str, Any] = cell.reply["content"]
    return content if content.get("ename") in ("VMDied", "GuestProtocolError", "VMError") else None


async def _served(beside: Neighbour, begin: float) -> None:
    """The neighbour's cells have gone on being answered."""
    await eventually(lambda: len(beside.between(begin, time.monotonic())) >= 2, 60.0, "the neighbour is served")


def _disk(home: Path) -> int:
    """Bytes that the service's files take."""
    total = 0
    for path in home.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total
