"""A kernel process whose guest attacks: it stays small, says what is wrong, can be interrupted; nobody else notices."""

from __future__ import annotations

import pytest
from jupyter_client.manager import AsyncKernelManager

from tests.hostile_guest import lies
from tests.hostile_guest.attacks import FATAL, IGNORED
from tests.hostile_guest.conftest import Growth, HostilePool, Start, descriptors
from tests.kernel.session import Session, has_ended, pid_of
from vm_kernel.guest import MAX_GROWTH_MIB

#: lines on the kernel process's stderr, whatever the guest has sent
MAX_LOG_LINES = 60


async def works(session: Session) -> None:
    """A cell runs, and is answered once."""
    cell = await session.run("hello")
    assert (cell.status, cell.stream()) == ("ok", "hello")
    session.iopub.clear()


async def press_stop(manager: AsyncKernelManager, session: Session, msg_id: str) -> dict[str, object]:
    """As often as it takes; the cell's reply."""
    for _ in range(3):
        await manager.interrupt_kernel()
        await session.drain(0.6)
    await session.until(lambda: msg_id in session.replies, "the end of the cell")
    content: dict[str, object] = session.replies.pop(msg_id)["content"]
    return content


@pytest.mark.timeout(300)
async def test_what_can_be_left_out_is_left_out(hostile_pool: HostilePool, start: Start) -> None:
    async with start() as (manager, session), start() as (_, neighbour):
        pid = pid_of(manager)
        for _ in range(20):  # until ZeroMQ has all its threads
            await works(session)
        growth, open_files = Growth(pid), descriptors(pid)
        for name, attack in IGNORED.items():
            assert attack.mib <= MAX_GROWTH_MIB
            await session.run(f"attack:{name}")
            session.iopub.clear()
            await works(session)
            await works(neighbour)
            assert growth.mib < attack.mib, name
            growth.reset()
        assert descriptors(pid) <= open_files
        log = hostile_pool.logs[pid].read_text()
        assert "guest_message_refused" in log
        assert len(log.splitlines()) < MAX_LOG_LINES


@pytest.mark.timeout(300)
async def test_what_cannot_ends_the_session_and_no_other(start: Start) -> None:
    async with start() as (_, neighbour):
        for name, attack in FATAL.items():
            async with start() as (manager, session):
                growth = Growth(pid_of(manager))
                msg_id = session.client.execute(f"attack:{name}")
                # a process that has ended does not tell what it took
                await session.until(lambda: growth.mib < 0 or msg_id in session.replies, name, 60)  # noqa: B023
                content = session.replies[msg_id]["content"]
                assert content.get("ename") in ("GuestProtocolError", "VMDied"), name
                assert content["evalue"].replace("\n", "").isprintable(), name
                assert len(content["evalue"]) < 500, name
                await has_ended(manager, 20)
                assert growth.mib < attack.mib <= MAX_GROWTH_MIB, name
            await works(neighbour)


@pytest.mark.parametrize("manner", ["mute", "deaf"])
async def test_a_guest_that_says_nothing_can_be_stopped(start: Start, manner: str) -> None:
    """No answer to a cell, or none to an interrupt either: the third one takes a fresh VM."""
    async with start() as (manager, session):
        await session.run("manner:deaf")
        if manner == "mute":
            await session.run("manner:mute")
        msg_id = session.client.execute("attack:slow_loris" if manner == "deaf" else "silence")
        await session.drain(0.5)
        assert (await press_stop(manager, session, msg_id))["ename"] == "KernelRestarted"
        await works(session)


async def test_a_host_cell_whose_turn_never_comes_can_be_stopped(start: Start) -> None:
    async with start() as (manager, session):
        await session.run("manner:unmarked")
        msg_id = session.client.execute("%checkpoint a")
        behind = session.client.execute("behind it")
        await session.drain(0.5)
        assert (await press_stop(manager, session, msg_id))["ename"] == "KernelRestarted"
        await session.until(lambda: behind in session.replies, "the end of what waited")
        assert session.replies.pop(behind)["content"]["status"] == "aborted"
        await works(session)


@pytest.mark.timeout(120)
async def test_a_guest_that_does_not_fall_silent_costs_its_checkpoint_or_its_session(start: Start) -> None:
    for manner in lies.FROZEN:
        async with start() as (manager, session):
            await session.run(f"manner:{manner}")
            growth = Growth(pid_of(manager))
            msg_id = session.client.execute("%checkpoint a")
            if manner == "silent":
                await session.drain(0.5)
                await manager.interrupt_kernel()
            await session.until(lambda: msg_id in session.replies, f"the end of {manner}")  # noqa: B023
            assert session.replies.pop(msg_id)["content"]["status"] == "error", manner
            if manner == "empty messages":
                await has_ended(manager, 20)
                continue
            await works(session)
            assert growth.mib < 64, manner


async def test_files_from_a_guest_that_lies_do_not_arrive(hostile_pool: HostilePool, start: Start) -> None:
    async with start() as (manager, session):
        for lie in lies.FILES:
            await session.run(f"manner:{lie}")
            msg_id = session.client.execute("%vm_get source target")
            if lie == "foreign":
                await session.drain(1.0)
                await manager.interrupt_kernel()
            await session.until(lambda: msg_id in session.replies, f"the end of {lie}")  # noqa: B023
            content = session.replies.pop(msg_id)["content"]
            assert content["ename"] in ("FilesystemError", "KeyboardInterrupt"), (lie, content)
            assert len(content["evalue"]) < 1000
            await works(session)
        assert list(hostile_pool.cwd.iterdir()) == []
        assert not (hostile_pool.home / "evil").exists()
