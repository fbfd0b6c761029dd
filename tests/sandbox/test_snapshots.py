"""Saved states in the Python API: restored in the same sandbox, and continued in several at once."""

from __future__ import annotations

import asyncio

import pytest

from vm_kernel import Sandbox
from vm_kernel.errors import CheckpointError, SandboxClosed


async def test_a_snapshot_brings_back_the_whole_state(warm_pool: None) -> None:
    async with Sandbox() as box:
        await box.execute("x = bytearray(b'a') * (20 << 20); y = 1; open('f', 'w').write('old')")
        first = await box.snapshots.create("first")
        assert 20 < first.size_mib < 60
        assert 0 < first.pause_ms < 5000
        vm = box.vm
        await box.execute("x[0] = 0; y = 2; open('f', 'w').write('new')")
        await box.snapshots.create("second")
        await box.snapshots.restore("first")
        assert box.vm is not None
        assert vm is not None
        assert box.vm.name != vm.name
        assert (await box.execute("print(x[0], y, open('f').read())")).stdout == "97 1 old\n"
        await box.snapshots.restore("second")
        assert (await box.execute("print(x[0], y, open('f').read())")).stdout == "0 2 new\n"
        assert [snapshot.name for snapshot in await box.snapshots.list()] == ["first", "second"]
        await box.snapshots.delete("first")
        assert [snapshot.name for snapshot in await box.snapshots.list()] == ["second"]
        with pytest.raises(CheckpointError, match="There is no checkpoint 'first'"):
            await box.snapshots.restore("first")
        assert (await box.execute("y")).result.text == "2", "it goes on as it was"  # type: ignore[union-attr]


async def test_forks_go_on_from_the_same_state_and_are_unlike_each_other(warm_pool: None) -> None:
    code = "import random, uuid, socket, os; (random.random(), uuid.uuid4().hex, socket.gethostname(), os.urandom(8))"
    async with Sandbox() as box:
        await box.execute("x = 41; import random; random.seed(1)")
        children = await box.fork(3)
        try:
            values = await asyncio.gather(*(child.execute(f"x += {n}; x") for n, child in enumerate(children)))
            assert [value.result.text for value in values] == ["41", "42", "43"]  # type: ignore[union-attr]
            drawn = [(await each.execute(code)).result.text for each in (box, *children)]  # type: ignore[union-attr]
            for parts in zip(*(eval(text) for text in drawn), strict=True):
                assert len(set(parts)) == 4
        finally:
            await asyncio.gather(*(child.close() for child in children))
        assert (await box.execute("x")).result.text == "41"  # type: ignore[union-attr]
        assert await box.snapshots.list() == []


async def test_a_closed_sandbox_has_no_snapshots() -> None:
    box = Sandbox()
    with pytest.raises(SandboxClosed):
        await box.snapshots.create("x")
    with pytest.raises(SandboxClosed):
        await box.fork(2)
