"""A program's ``Sandbox`` whose guest attacks: the same attacks, the same promises as for a kernel process."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.hostile_guest import lies
from tests.hostile_guest.attacks import FATAL, IGNORED
from tests.hostile_guest.conftest import Growth, HostilePool
from vm_kernel import Sandbox
from vm_kernel.errors import FilesystemError, GuestProtocolError, VMDied

#: what a client of this test gets as text, in MiB; the kernel process's own tests do the rest
TOO_LARGE = {"one_text", "one_text_with_half_a_character", "large_buffers"}


@pytest.fixture(autouse=True)
def home(hostile_pool: HostilePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sandboxes of this process come from the hostile pool."""
    monkeypatch.setenv("VM_KERNEL_HOME", str(hostile_pool.home))


async def works(box: Sandbox) -> None:
    """Code runs."""
    result = await box.execute("hello", timeout=60)
    assert (result.status, result.stdout) == ("ok", "hello")


@pytest.mark.timeout(300)
async def test_what_can_be_left_out_is_left_out() -> None:
    async with Sandbox() as box, Sandbox() as neighbour:
        await works(box)
        growth = Growth(os.getpid())
        # in order: what the large ones at the end leave behind in this process would be counted for the others
        for name in [name for name in IGNORED if name not in TOO_LARGE]:
            await box.execute(f"attack:{name}", timeout=120)
            await works(box)
            assert growth.mib < IGNORED[name].mib, name
            growth.reset()
        await works(neighbour)


@pytest.mark.timeout(300)
async def test_what_cannot_ends_the_sandbox_and_no_other() -> None:
    async with Sandbox() as neighbour:
        for name, attack in FATAL.items():
            async with Sandbox() as box:
                growth = Growth(os.getpid())
                with pytest.raises((GuestProtocolError, VMDied)) as caught:
                    await box.execute(f"attack:{name}", timeout=60)
                assert len(str(caught.value)) < 500, name
                assert growth.mib < attack.mib, name
                await box.start()
                await works(box)
        await works(neighbour)


async def test_an_update_of_many_outputs_is_counted_for_each_of_them() -> None:
    """A guest that shows one thing ten thousand times and then replaces it would keep its host busy for hours."""
    async with Sandbox(max_output_bytes=2_000_000) as box:
        result = await asyncio.wait_for(box.execute("attack:updates"), 60)
        assert result.truncated
        assert len(result.outputs) > 1000
        await works(box)


async def test_files_from_a_guest_that_lies_do_not_arrive(hostile_pool: HostilePool) -> None:
    async with Sandbox() as box:
        for lie in lies.FILES.keys() - {"foreign", "kind is a list", "kind is missing"}:
            await box.execute(f"manner:{lie}")
            with pytest.raises((FilesystemError, GuestProtocolError)):
                await box.files.get_tree("source", hostile_pool.cwd / "target")
            if box.vm is None:
                await box.start()
        assert list(hostile_pool.cwd.iterdir()) == []
