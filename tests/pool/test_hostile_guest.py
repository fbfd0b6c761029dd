"""The guest is lost: its agent sends what it likes. The session ends with a clear error; the service lives on."""

from __future__ import annotations

import os
import re
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import guest_agent
from tests.conftest import CONFIG, StartKernel, eventually, qemus, service_pid, stop_service, wait_until, write_config
from tests.guest_session import GuestSession
from tests.hostile_guest.conftest import Growth, descriptors
from tests.kernel.session import Session, pid_of
from tests.pool.rest import profile
from vm_kernel.errors import GuestProtocolError
from vm_kernel.pool.client import PoolConnection

BAD_FRAMES = ["four_gigabytes", "random", "unknown_kind"]
BAD_BODIES = ["parts_that_are_not_there", "a_list"]
#: attacks that a guest of the default size has memory for
IGNORED = [
    "bad_json",
    "nested_just_so",
    "wrong_fields",
    "twice_the_same_key",
    "not_utf8",
    "bad_addresses",
    "unknown_channels",
    "nobodys_replies",
    "idle_too_early",
    "confirmations",
]
HERE = Path(__file__).parent


@pytest.fixture(scope="module", params=["hostile_agent.py"])
def hostile_home(request: pytest.FixtureRequest, vm_home: Path) -> Iterator[Path]:
    """A pool whose VMs run another agent, in a home of its own."""
    home = Path(tempfile.mkdtemp(prefix="vmk-"))
    home.chmod(0o755)
    package = home / "code" / "guest_agent"
    shutil.copytree(Path(guest_agent.__file__).parent, package)
    (package / "agent.py").rename(package / "honest_agent.py")
    shutil.copy(HERE / request.param, package / "agent.py")
    shutil.copy(HERE.parent / "hostile_guest" / "attacks.py", package / "attacks.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VM_KERNEL_HOME", str(home / "home"))
        patch.setenv("PYTHONPATH", str(home / "code"))
        write_config(CONFIG + "c.PoolConfig.min_warm = 1\nc.PoolConfig.preload = []")
        yield home
        stop_service()
        write_config(CONFIG)
    assert not qemus(home)
    shutil.rmtree(home)


@pytest.mark.parametrize("attack", BAD_FRAMES)
def test_a_guest_that_breaks_the_protocol_ends_its_session_and_no_other(hostile_home: Path, attack: str) -> None:
    other = PoolConnection.open()
    neighbour = GuestSession(other.acquire())
    pid = service_pid()
    connection = PoolConnection.open()
    session = GuestSession(connection.acquire())
    assert session.value("1 + 1") == 2
    session.send("execute_request", {"code": f"'attack:{attack}'", "silent": False})
    with pytest.raises(GuestProtocolError, match="broke the protocol") as caught:
        _receive_all(session)
    assert "Restart the kernel" in caught.value.hint
    connection.close()
    assert neighbour.value("2 + 2") == 4
    assert service_pid() == pid
    other.close()


@pytest.mark.parametrize("attack", BAD_FRAMES + BAD_BODIES)
async def test_the_notebook_is_told(hostile_home: Path, start_kernel: StartKernel, attack: str) -> None:
    async with start_kernel() as (_, client):
        reply = await client.execute_interactive(f"'attack:{attack}'", timeout=60, output_hook=lambda _: None)
        assert reply["content"]["status"] == "error"
        assert reply["content"]["ename"] in ("VMDied", "GuestProtocolError")
        assert "protocol" in reply["content"]["evalue"]


@pytest.mark.timeout(300)
async def test_what_can_be_left_out_reaches_neither_neighbours_nor_the_pool(
    hostile_home: Path, start_kernel: StartKernel
) -> None:
    async with start_kernel() as (manager, client), start_kernel() as (_, other):
        session, neighbour = Session(client), Session(other)
        await eventually(lambda: profile()["warm"] == 1, 120.0, "the next VM is warm")
        service = service_pid()
        open_files, growth, growth_of_service = descriptors(service), Growth(pid_of(manager)), Growth(service)
        for name in IGNORED:
            await session.run(f"'attack:{name}'")
            assert (await session.run("6 * 7")).value == "42", name
        assert (await neighbour.run("7 * 6")).value == "42"
        assert growth.mib < 128
        assert growth_of_service.mib < 16
        await eventually(lambda: descriptors(service) <= open_files, 60.0, "no descriptor is left open in the service")


@pytest.mark.timeout(300)
async def test_a_checkpoint_of_a_lost_guest_takes_nothing_of_the_services_memory(
    hostile_home: Path, start_kernel: StartKernel
) -> None:
    async with start_kernel() as (_, client):
        session = Session(client)
        for code in ("'freeze:poison'", "%checkpoint a"):
            assert (await session.run(code, timeout_s=150)).status == "ok"
        growth = Growth(service_pid())
        back = await session.run("%rollback a", timeout_s=150)
        assert back.reply["content"]["ename"] == "GuestProtocolError"
        assert (await session.run("6 * 7")).value == "42", "the session goes on where it was"
        assert growth.mib < 64


@pytest.mark.parametrize(
    ("manner", "error"),
    [("deaf", "VMError"), ("garbage", "GuestProtocolError"), ("leave", "VMDied|VMError"), ("babble", "")],
)
async def test_a_guest_that_does_not_stand_still_has_no_checkpoint_or_a_bad_one(
    hostile_home: Path, start_kernel: StartKernel, manner: str, error: str
) -> None:
    async with start_kernel() as (_, client):
        for code in (f"'freeze:{manner}'", "%checkpoint a"):
            reply = await client.execute_interactive(code, timeout=150, output_hook=lambda _: None)
        content = reply["content"]
        assert content["status"] == ("error" if error else "ok")
        assert re.fullmatch(error, content.get("ename", ""))
    live = hostile_home / "home" / "checkpoints" / "live"
    await eventually(lambda: list(live.iterdir()) == [], 60.0, "no checkpoint is left")


async def test_a_panic_of_the_guests_kernel_is_named(hostile_home: Path, start_kernel: StartKernel) -> None:
    async with start_kernel() as (_, client):
        reply = await client.execute_interactive("'attack:panic'", timeout=60, output_hook=lambda _: None)
        assert reply["content"]["ename"] == "VMDied"
        assert "the Linux kernel in it has panicked" in reply["content"]["evalue"]


def test_a_warm_vm_whose_guest_does_not_answer_is_replaced(hostile_home: Path) -> None:
    write_config(CONFIG + "c.PoolConfig.health_interval_s = 2.0; c.PoolConfig.health_timeout_s = 1.0")
    with closing(PoolConnection.open()) as connection:
        connection.reload()
    wait_until(lambda: profile()["failures_by_cause"].get("health", 0) >= 2, 60.0, "both VMs were found unwell")
    write_config(CONFIG + "c.PoolConfig.min_warm = 1; c.PoolConfig.health_interval_s = 0")
    with closing(PoolConnection.open()) as connection:
        connection.reload()
        lease = connection.acquire()
        assert GuestSession(lease).value("6 * 7") == 42
        lease.stream.close()


@pytest.mark.parametrize("hostile_home", ["rude_agent.py"], indirect=True)
def test_a_guest_that_greets_with_garbage_is_destroyed(hostile_home: Path) -> None:
    connection = PoolConnection.open()
    with pytest.raises(GuestProtocolError, match="broke the protocol"):
        connection.acquire()
    connection.close()
    connection = PoolConnection.open()
    status = connection.status()
    assert status["profiles"][0]["state"] == "broken"
    assert "protocol" in status["profiles"][0]["detail"]
    assert status["totals"]["failures"] >= 3
    connection.close()
    assert len(qemus(hostile_home)) <= 1


def _receive_all(session: GuestSession) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        select.select([session.stream], [], [], 1.0)
        session.stream.receive()
    raise AssertionError(f"nothing came (pid {os.getpid()})")
