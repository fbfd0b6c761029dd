"""Code that swallows KeyboardInterrupt: the second interrupt offers a restart in a fresh VM, the third performs it."""

from __future__ import annotations

import os
import signal
import time

import pytest
from jupyter_client.manager import AsyncKernelManager

from tests.conftest import ended, eventually
from tests.kernel.session import Session, pid_of, vm_of
from vm_kernel.kernel.escalation import SAME_PRESS_S, WITHIN_S, Escalation, Step
from vm_kernel.kernel.requests import Request
from vm_kernel.kernel.wire import Message

STUBBORN = """
import time
caught = 0
print('begun', flush=True)
while True:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        caught += 1
        print('caught', caught, flush=True)
"""
OFFER = "Interrupt it once more within 5 seconds"
PAUSE_S = 2 * SAME_PRESS_S


async def press(manager: AsyncKernelManager, how: str) -> None:
    """Interrupt as Jupyter does, or by a signal."""
    if how == "message":
        await manager.interrupt_kernel()
    else:
        os.kill(pid_of(manager), signal.SIGINT)


@pytest.mark.parametrize("how", ["message", "signal"])
async def test_the_third_interrupt_brings_a_fresh_vm(kernel: tuple[AsyncKernelManager, Session], how: str) -> None:
    manager, session = kernel
    before = await session.run("mine = 1; open('/tmp/mine', 'w').close()")
    first_vm = vm_of(manager)
    running = session.client.execute(STUBBORN)
    queued = session.client.execute("'queued'")
    await session.until_output(running, "begun")
    await session.drain(0.5)  # it sleeps then

    await press(manager, how)
    await session.until_output(running, "caught 1")
    await session.drain(PAUSE_S)
    assert OFFER not in session.printed(running)
    await press(manager, how)
    await session.until_output(running, OFFER)
    await session.drain(PAUSE_S)
    await press(manager, how)

    cell = await session.finish(running)
    assert "restarted in a fresh virtual machine" in cell.stream("stderr")
    assert cell.of("error")[0]["ename"] == cell.reply["content"]["ename"] == "KernelRestarted"
    assert (await session.finish(queued)).status == "aborted"

    after = await session.run("import os; 'mine' in globals(), 'caught' in globals(), os.path.exists('/tmp/mine')")
    assert (after.value, after.number) == ("(False, False, False)", 1)
    assert after.reply["header"]["session"] != before.reply["header"]["session"]
    assert {message["header"]["session"] for message in after.iopub} == {after.reply["header"]["session"]}
    await eventually(lambda: ended(first_vm), 60.0, "the first VM has gone")
    # what a fresh kernel can do, it can do: host cells, interrupts
    assert "VM" in (await session.run("%vm_info")).of("display_data")[0]["data"]["text/plain"]
    sleeping = session.client.execute("import time; print('asleep', flush=True); time.sleep(60)")
    await session.until_output(sleeping, "asleep")
    await manager.interrupt_kernel()
    assert (await session.finish(sleeping)).reply["content"]["ename"] == "KeyboardInterrupt"


async def test_cells_that_stop_are_never_offered_a_restart(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    await session.run("import time; mine = 1")
    for _ in range(4):
        msg_id = session.client.execute("print('begun', flush=True); time.sleep(60)")
        await session.until_output(msg_id, "begun")
        for _ in range(3):  # an impatient finger
            await manager.interrupt_kernel()
        cell = await session.finish(msg_id)
        assert "once more" not in cell.stream("stderr")
        await session.drain(0.3)  # the second may have come after the cell
    assert (await session.run("mine")).value == "1"


async def test_a_frozen_vm_does_not_keep_its_user_waiting(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    msg_id = session.client.execute("print('begun', flush=True); import time; time.sleep(600)")
    await session.until_output(msg_id, "begun")
    frozen = vm_of(manager)
    os.kill(frozen, signal.SIGSTOP)
    for _ in range(3):
        begin = time.monotonic()
        answer = await session.ask("interrupt_request", {}, "control")
        assert answer.status == "ok"
        assert time.monotonic() - begin < 60
        await session.drain(PAUSE_S)
    assert (await session.finish(msg_id)).reply["content"]["ename"] == "KernelRestarted"
    assert (await session.run("6 * 7")).value == "42"
    await eventually(lambda: ended(frozen), 60.0, "the frozen VM has gone")


def _cell(msg_id: str) -> Request:
    header = {"msg_id": msg_id, "msg_type": "execute_request"}
    return Request("shell", Message([b"client"], header, {"code": ""}, [b"{}"] * 4))


@pytest.mark.parametrize(
    ("pauses", "steps"),
    [
        ([0, 1, 1], [Step.INTERRUPT, Step.OFFER, Step.RESTART]),
        ([0, WITHIN_S, WITHIN_S], [Step.INTERRUPT, Step.OFFER, Step.RESTART]),
        ([0, WITHIN_S + 1, WITHIN_S + 1], [Step.INTERRUPT] * 3),
        ([0, 1, WITHIN_S + 1, 1], [Step.INTERRUPT, Step.OFFER, Step.INTERRUPT, Step.OFFER]),
        ([0, 0.1, 0.1, 0.1], [Step.INTERRUPT] * 4),  # one press of the button
    ],
)
def test_what_interrupts_mean_depends_on_the_pauses_between_them(pauses: list[float], steps: list[Step]) -> None:
    escalation, cell, now = Escalation(), _cell("a"), 1000.0
    taken = []
    for pause in pauses:
        now += pause
        taken.append(escalation.step(cell, now))
    assert taken == steps


def test_interrupts_of_different_cells_or_of_none_do_not_add_up() -> None:
    escalation = Escalation()
    cells = [_cell("a"), _cell("b"), None, None, None, _cell("c")]
    assert [escalation.step(cell, 1000.0 + number) for number, cell in enumerate(cells)] == [Step.INTERRUPT] * 6
