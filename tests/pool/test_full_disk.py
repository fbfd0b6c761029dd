"""No space left on the disk of the service's home."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.conftest import qemus, stop_service, wait_until
from tests.guest_session import GuestSession
from tests.pool import small_disk
from tests.pool.rest import TIMEOUT_S, assert_clean, profile, take_until_it_fails, used_and_at_rest
from tests.vm.child import Child
from vm_kernel.errors import VMKernelError
from vm_kernel.pool.client import PoolConnection


def test_sessions_go_on_and_new_ones_come_when_there_is_room_again(vm_home: Path) -> None:
    home = vm_home / "small"
    home.mkdir()

    def body() -> None:
        small_disk.mount(home, 24)
        os.environ["VM_KERNEL_HOME"] = str(home)
        before = used_and_at_rest(home)
        with ExitStack() as connections:
            session = GuestSession(connections.enter_context(closing(PoolConnection.open())).acquire())
            small_disk.fill(home / "filler")
            error = take_until_it_fails(connections)
            assert "No space left" in error.message, error
            assert profile()["state"] == "broken"
            assert session.value("6 * 7") == 42
            (home / "filler").unlink()
            wait_until(lambda: profile()["state"] == "ok", TIMEOUT_S, "the profile has mended itself")
        session.stream.close()
        assert_clean(home, before)
        stop_service()
        small_disk.fill(home / "filler")
        with pytest.raises(VMKernelError, match="No space left") as caught:
            PoolConnection.open().acquire()
        assert "room" in caught.value.hint
        (home / "filler").unlink()
        with closing(PoolConnection.open()) as connection:
            connection.acquire().stream.close()
        stop_service()
        assert not qemus(home)

    Child(body, as_root=True).result(300.0)
    home.rmdir()
