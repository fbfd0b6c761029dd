"""Checkpoints as the pool service keeps them: bounded, clean after every failure, and nobody else's."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest_agent.frames import Kind, decode_json
from tests.conftest import CONFIG, qemus, service_pid, stop_service, wait_until, write_config
from tests.guest_session import GuestSession
from vm_kernel.errors import CheckpointError, PoolFull, PoolRequestError
from vm_kernel.pool.client import Lease, PoolConnection


@contextmanager
def frozen(session: GuestSession) -> Iterator[None]:
    """The guest's agent has fallen silent."""
    session.stream.send_json(Kind.FREEZE, {})
    answers: list[tuple[Kind, bytes]] = []

    def answered() -> bool:
        answers.extend(session.stream.receive())
        return any(kind is Kind.FROZEN for kind, _ in answers)

    wait_until(answered, 60.0, "the agent falls silent")
    assert [decode_json(body) for kind, body in answers if kind is Kind.FROZEN] == [{}]
    yield
    session.stream.send_json(Kind.THAW, {})


def thawed(lease: Lease) -> GuestSession:
    """The session in a VM that was made from a checkpoint."""
    session = GuestSession(lease)
    session.stream.send_json(Kind.THAW, {})
    return session


def live(home: Path) -> list[Path]:
    return sorted((home / "checkpoints" / "live").rglob("*"))


def own_qemus(home: Path, names: set[str]) -> set[int]:
    return {q.pid for q in qemus(home) for name in names if any(f"guest={name}," in word for word in q.info["cmdline"])}


@contextmanager
def configured(text: str) -> Iterator[None]:
    """A service with further settings."""
    stop_service()
    write_config(CONFIG + text)
    try:
        yield
    finally:
        stop_service()
        write_config(CONFIG)


def test_disk_use_is_shown_and_limited(vm_home: Path) -> None:
    with configured("c.PoolConfig.checkpoint_disk_mib = 64\n"):
        connection = PoolConnection.open()
        session = GuestSession(connection.acquire())
        with frozen(session):
            facts = connection.save_checkpoint("small")
        listed = connection.checkpoints()
        assert listed["limit_mib"] == 64
        assert facts["size_mib"] <= listed["used_mib"] < facts["size_mib"] + 2
        session.value("len(globals().setdefault('x', bytearray(b'x') * (60 << 20)))")
        with frozen(session), pytest.raises(CheckpointError, match="MiB are left for checkpoints") as caught:
            connection.save_checkpoint("large")
        assert "checkpoint_disk_mib" in caught.value.hint
        assert connection.checkpoints()["used_mib"] == listed["used_mib"]
        assert session.value("x[0]") == ord("x"), "the session goes on"
        connection.delete_checkpoint("small")
        assert connection.checkpoints()["used_mib"] == 0
        connection.close()


def test_a_rollback_leaves_one_vm_and_no_files_of_the_other(lease: Lease, vm_home: Path) -> None:
    session = GuestSession(lease)
    session.value("globals().update(x=1) or x")
    with frozen(session):
        lease.connection.save_checkpoint("a")
    names = {lease.vm.name}
    for _ in range(5):
        moved = lease.connection.rollback("a")
        names.add(moved.vm.name)
        session = thawed(moved)
        assert session.value("x") == 1
    assert len(names) == 6
    wait_until(lambda: len(own_qemus(vm_home, names)) == 1, 60.0, "the VMs before have gone")
    wait_until(lambda: len([p for n in names for p in vm_home.rglob(f"{n}*")]) < 8, 60.0, "and their files")


def test_the_vm_dies_after_the_checkpoint_and_the_session_ends(lease: Lease, vm_home: Path) -> None:
    session = GuestSession(lease)
    with frozen(session):
        lease.connection.save_checkpoint("a")
    for pid in own_qemus(vm_home, {lease.vm.name}):
        os.kill(pid, signal.SIGKILL)
    event = lease.connection.read_event(20.0)
    assert event is not None
    assert event["event"] == "vm_gone"
    lease.connection.close()
    wait_until(lambda: live(vm_home) == [], 60.0, "its checkpoints have gone with it")


def test_a_service_that_was_killed_leaves_no_checkpoints_but_the_kept_ones(vm_home: Path) -> None:
    connection = PoolConnection.open()
    session = GuestSession(connection.acquire())
    with frozen(session):
        connection.save_checkpoint("live")
        connection.save_checkpoint("kept", keep=True)
    os.kill(service_pid(), signal.SIGKILL)
    connection.close()
    connection = PoolConnection.open()
    fresh = connection.acquire()
    assert live(vm_home) == []
    assert [facts["name"] for facts in connection.checkpoints()["checkpoints"]] == ["kept"]
    assert thawed(connection.rollback("kept")).value("1 + 1") == 2
    fresh.stream.close()
    connection.delete_checkpoint("kept")
    connection.close()


def test_a_fork_waits_for_room_and_takes_that_of_warm_vms(vm_home: Path) -> None:
    with configured("c.PoolConfig.max_vms = 3\nc.PoolConfig.acquire_timeout_s = 5.0\n"):
        connection = PoolConnection.open()
        session = GuestSession(connection.acquire())
        session.value("globals().update(x=5) or x")
        with frozen(session):
            token = connection.fork()
        children = [PoolConnection.open() for _ in range(3)]
        try:
            told: list[str] = []
            first, second = (child.acquire(fork=token) for child in children[:2])
            assert [thawed(child).value("x") for child in (first, second)] == [5, 5]
            with pytest.raises(PoolFull, match="All 3 VMs"):
                children[2].acquire(fork=token, on_waiting=told.append)
            assert told
            connection.delete_checkpoint(token)
            children[2].close()
            children[2] = PoolConnection.open()
            with pytest.raises(CheckpointError, match="has ended meanwhile"):
                children[2].acquire(fork=token)
        finally:
            for child in (connection, *children):
                child.close()


def test_requests_that_make_no_sense_within_a_lease_do_not_end_it(lease: Lease) -> None:
    sock = lease.connection._sock
    for line in (b"garbage\n", b'{"op": "nosuch"}\n', b"[]\n", b'{"op": "acquire"}\n'):
        sock.sendall(line)
        with pytest.raises(PoolRequestError, match="within a lease"):
            lease.connection.read_event(20.0)
    for name in ("../../etc", "", None, 7, "a\0b"):
        sock.sendall(b'{"op": "rollback", "name": %s}\n' % json.dumps(name).encode())
        with pytest.raises(CheckpointError):
            lease.connection.read_event(20.0)
    assert GuestSession(lease).value("1 + 1") == 2
