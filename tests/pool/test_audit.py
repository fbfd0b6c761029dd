"""The audit log: one line an event, ids that tie them together, and no session that depends on it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CONFIG, StartKernel, eventually, stop_service, wait_until, write_config
from tests.guest_session import GuestSession
from tests.kernel.session import Session, pid_of
from vm_kernel import Sandbox, paths
from vm_kernel.errors import CheckpointError, PoolRequestError, UnknownProfile, VMDied
from vm_kernel.pool.audit import AuditLog
from vm_kernel.pool.client import Lease, PoolConnection
from vm_kernel.pool.notes import BURST, MAX_CODE, parse_note

EXECUTION = {
    "event": "execution", "msg_id": "m", "status": "ok", "ms": 1.5, "output_bytes": 3, "code_sha256": "ab" * 32,
    "code_bytes": 7, "new_output_bytes": 3,
}  # fmt: skip
IDS = ("lease", "vm", "profile", "kernel_id", "client_pid", "uid")


def events(vm: str | None = None, event: str | None = None) -> list[dict[str, Any]]:
    """What the audit log has, of that VM and of that kind."""
    whole = paths.audit_log().read_text().rpartition("\n")[0]  # the last line may be half there
    found = [json.loads(line) for line in whole.splitlines()]
    return [e for e in found if (vm is None or e.get("vm") == vm) and (event is None or e["event"] == event)]


def digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


async def test_a_notebooks_session_from_lease_to_release(start_kernel: StartKernel, warm_pool: None) -> None:
    async with start_kernel() as (manager, client):
        session = Session(client)
        await session.run("x = 1")
        vm = _vm_of(pid_of(manager))
        printed = await session.run("print('é' * 1000)")
        failed = await session.run("1 / 0")
        await session.run("%pool_status")
        await eventually(lambda: len(events(vm, "execution")) >= 3, 60.0, "three executions")
        kernel_id = Path(manager.connection_file).stem.removeprefix("kernel-")
        pid = pid_of(manager)
    await eventually(lambda: bool(events(vm, "release")), 60.0, "the release")
    story = events(vm)
    assert [e["event"] for e in story] == ["lease", "execution", "execution", "execution", "release"]
    assert len({tuple(e[name] for name in IDS) for e in story}) == 1
    assert (story[0]["kernel_id"], story[0]["client_pid"], story[0]["uid"]) == (kernel_id, pid, os.geteuid())
    assert story[0]["memory_mib"] == 384
    _, printing, failing = (e for e in story if e["event"] == "execution")
    assert printing["msg_id"] == printed.reply["parent_header"]["msg_id"]
    assert printing["code_sha256"] == digest("print('é' * 1000)")
    assert printing["code_bytes"] == len("print('é' * 1000)".encode())
    assert 2000 < printing["output_bytes"] < 20_000
    assert printing["ms"] > 0
    assert (failing["status"], failing["msg_id"]) == ("error", failed.reply["parent_header"]["msg_id"])
    release = story[-1]
    assert release["executions"] == 3
    assert release["cause"] == "its lease ended"
    assert release["output_bytes"] >= printing["output_bytes"] + failing["output_bytes"]
    assert release["cpu_s"] > 0
    assert release["peak_memory_mib"] > 1
    assert "print" not in paths.audit_log().read_text()
    assert paths.audit_log().stat().st_mode & 0o777 == 0o600


async def test_sandboxes_tell_what_they_execute(warm_pool: None) -> None:
    async with Sandbox(name="auditor") as box:
        assert box.vm is not None
        vm = box.vm.name
        await box.execute("print('x' * 100)")
        await box.execute("import time; time.sleep(60)", timeout=0.5)
        running = asyncio.ensure_future(box.execute("print('go'); time.sleep(60)"))
        await asyncio.sleep(1.0)
    with pytest.raises(Exception, match="closed"):
        await running
    await eventually(lambda: bool(events(vm, "release")), 60.0, "the release")
    assert [e["status"] for e in events(vm, "execution")] == ["ok", "timeout", "ended"]
    assert {e["kernel_id"] for e in events(vm)} == {"auditor"}


async def test_the_cell_that_ran_when_a_vm_died_is_noted(warm_pool: None) -> None:
    async with Sandbox() as box:
        assert box.vm is not None
        vm = box.vm.name
        running = asyncio.ensure_future(box.execute("while True: pass"))
        await asyncio.sleep(1.0)
        os.kill(_row(vm)["pid"], 9)
        with pytest.raises(VMDied):
            await running
    await eventually(lambda: bool(events(vm, "release")), 60.0, "the release")
    assert [(e["status"], e["code_sha256"]) for e in events(vm, "execution")] == [("ended", digest("while True: pass"))]
    assert "QEMU" in events(vm, "release")[0]["cause"]


async def test_files_are_noted(warm_pool: None) -> None:
    async with Sandbox() as box:
        assert box.vm is not None
        vm = box.vm.name
        await box.files.write_file("notes.txt", b"x" * 1000)
        assert await box.files.read_file("notes.txt") == b"x" * 1000
        await eventually(lambda: len(events(vm, "files")) == 2, 60.0, "both transfers")
    await eventually(lambda: bool(events(vm, "release")), 60.0, "the release")
    put, get = events(vm, "files")
    assert (put["action"], put["path"], put["files"], put["bytes"], put["status"]) == (
        "put",
        "notes.txt",
        1,
        1000,
        "ok",
    )
    assert (get["action"], get["bytes"]) == ("get", 1000)
    assert events(vm, "release")[0]["file_bytes"] == 2000
    assert 'vm_kernel_file_bytes_total{action="put",profile="default"}' in _metrics()


async def test_checkpoints_rollbacks_and_forks_are_noted(warm_pool: None) -> None:
    async with Sandbox(name="traveller") as box:
        assert box.vm is not None
        vm = box.vm.name
        await box.execute("x = 1")
        await box.snapshots.create("before")
        await box.execute("x = 2")
        await box.snapshots.restore("before")
        await box.execute("x = 3")
        with pytest.raises(CheckpointError):
            await box.snapshots.restore("never")
        (child,) = await box.fork(1)
        await child.close()
    lease = events(vm, "lease")[0]["lease"]
    await eventually(lambda: lease in {e["lease"] for e in events(event="release")}, 60.0, "the release")
    story = [e for e in events() if e.get("lease") == lease]
    kinds = [e["event"] for e in story if e["event"] not in ("execution", "delete_checkpoint")]
    assert kinds == ["lease", "checkpoint", "rollback", "refused", "fork", "release"]
    rollback = next(e for e in story if e["event"] == "rollback")
    assert rollback["old_vm"] == vm != rollback["vm"]
    assert story[-1]["executions"] == 3
    assert story[-1]["checkpoints"] == 1
    assert story[-1]["cpu_s"] > 0


def test_output_of_a_cell_that_goes_on_is_told_before_its_end(warm_pool: None) -> None:
    async def watch() -> None:
        async with Sandbox() as box:
            assert box.vm is not None
            name = box.vm.name
            running = asyncio.ensure_future(box.execute("while True: print('x' * 10000)", timeout=20))
            await eventually(lambda: _row(name)["output_bytes"] > 1 << 20, 60.0, "output is known")
            assert events(name, "execution") == []
            running.cancel()

    asyncio.run(watch())


def test_what_is_refused_is_noted(pool: PoolConnection) -> None:
    before = len(events(event="refused"))
    with closing(PoolConnection.open()) as connection, pytest.raises(UnknownProfile):
        connection.acquire("<no such profile>")
    wait_until(lambda: len(events(event="refused")) > before, 60.0, "the refusal")
    last = events(event="refused")[-1]
    assert (last["op"], last["error"], last["client_pid"]) == ("acquire", "UnknownProfile", os.getpid())


# ---- notes, which may come from a kernel process that was taken over


@pytest.mark.parametrize(
    "change",
    [
        {"event": "release"}, {"event": None}, {"event": []}, {"status": "fine"}, {"status": ["ok"]}, {"ms": -1},
        {"ms": "1"}, {"ms": True}, {"ms": 1e300}, {"output_bytes": -1}, {"output_bytes": 1.5},
        {"output_bytes": 1 << 60}, {"output_bytes": True}, {"code_sha256": "AB" * 32}, {"code_sha256": "ab"},
        {"code_sha256": None}, {"msg_id": "m" * 10_000}, {"msg_id": 5}, {"code_bytes": None}, {"new_output_bytes": "x"},
    ],
)  # fmt: skip
def test_a_note_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PoolRequestError):
        parse_note(EXECUTION | change)


def test_a_note_has_nothing_but_what_it_may_have() -> None:
    note = parse_note(EXECUTION | {"lease": "another", "uid": 0, "code": "x" * 100_000})
    assert set(note.fields) == set(EXECUTION) - {"event"} | {"code"}
    assert len(note.fields["code"]) == MAX_CODE


def test_wrong_and_too_many_notes_change_nothing_and_end_nothing(lease: Lease, pool: PoolConnection) -> None:
    connection, vm = lease.connection, lease.vm.name
    for line in (b'{"op": "note"}\n', b'{"op": "note", "event": "execution"}\n', b'{"op":"note","event":"release"}\n'):
        connection._sock.sendall(line)
    fields = {name: value for name, value in EXECUTION.items() if name != "event"}
    count, deadline = 3 * int(BURST), time.monotonic() + 60.0
    while count and time.monotonic() < deadline:
        count -= connection.note("execution", fields | {"lease": "forged", "msg_id": 'a"\n{"event":"x"}'})
    assert GuestSession(lease).value("1 + 1") == 2
    wait_until(lambda: _row(vm)["executions"] >= BURST, 60.0, "what is allowed is counted")
    noted = events(vm, "execution")
    assert BURST <= len(noted) < 3 * BURST
    assert {e["lease"] for e in noted} == {e["lease"] for e in events(vm, "lease")}
    connection.close()
    wait_until(lambda: bool(events(vm, "release")), 60.0, "the release")
    assert events(vm, "release")[0]["notes_dropped"] > 3
    assert 'vm_kernel_notes_dropped_total{reason="rate"}' in pool.metrics()


def test_the_client_is_never_held_up(warm_pool: None, pool: PoolConnection) -> None:
    """The service does not read: it is stopped."""
    with closing(PoolConnection.open()) as connection:
        connection.acquire()
        pid = pool.status()["pid"]
        os.kill(pid, 19)
        try:
            fields = EXECUTION | {"code": "x" * 10_000}
            del fields["event"]
            sent = [connection.note("execution", fields) for _ in range(1000)]
        finally:
            os.kill(pid, 18)
        assert sent[0]
        assert not sent[-1]


def test_telling_costs_next_to_nothing(lease: Lease) -> None:
    """A bound that a busy machine keeps, too: the process's own time, not the clock's."""
    from vm_kernel.guest.ledger import Ledger
    from vm_kernel.guest.messages import GuestMessage

    ledger = Ledger(lease.connection.note)
    header = [b"{}"] * 4
    busy, output, idle, reply = (
        GuestMessage(b"", kind, "m", content, header)
        for kind, content in (
            ("status", {"execution_state": "busy"}), ("stream", {}), ("status", {"execution_state": "idle"}),
            ("execute_reply", {"status": "ok"}),
        )
    )  # fmt: skip
    begin, cells = time.process_time(), 500
    for _ in range(cells):
        ledger.sent("m", "x = 1\n" * 10)
        for message in (busy, output, idle):
            ledger.published(message)
        ledger.replied(reply)
    assert (time.process_time() - begin) / cells < 0.0005


# ---- the file


def test_files_are_begun_anew_and_counted(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a.log", max_bytes=1000, files=2)
    for number in range(100):
        log.write("test", number=number)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert all(path.stat().st_size <= 1000 and path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    lines = [json.loads(line) for name in ("a.log.2", "a.log.1", "a.log") for line in _lines(tmp_path / name)]
    numbers = [line["number"] for line in lines]
    assert numbers == list(range(numbers[0], 100))


def test_a_file_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a.log", max_bytes=10_000, files=1)
    log.write("first")
    (tmp_path / "a.log").rename(tmp_path / "elsewhere")
    log.write("second")
    assert [len(_lines(tmp_path / name)) for name in ("elsewhere", "a.log")] == [1, 1]


# a file system without room, as far as one process is concerned
_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from vm_kernel.pool.audit import AuditLog
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
log = AuditLog(Path(sys.argv[1]), max_bytes=1 << 20, files=1)
for number in range(200):
    log.write("test", number=number, text="x" * 100)
print(log.failures)
"""


def test_a_full_disk_loses_whole_events_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _ON_A_FULL_DISK, str(tmp_path / "a.log")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    failures = int(done.stdout.splitlines()[-1])
    assert failures > 0
    assert [json.loads(line)["number"] for line in _lines(tmp_path / "a.log")] == list(range(200 - failures))
    assert done.stdout.count("audit_failed") == 1, "one complaint a minute"


@pytest.fixture
def configured(vm_home: Path) -> Iterator[Callable[[str], None]]:
    """A function that restarts the service with another configuration; afterwards the usual one is back."""

    def restart_with(text: str) -> None:
        stop_service()
        write_config(CONFIG + text)

    yield restart_with
    restart_with("")


def test_an_audit_log_that_cannot_be_written_is_logged_and_ends_no_lease(
    configured: Callable[[str], None], vm_home: Path
) -> None:
    configured("")
    kept = vm_home / "log" / "audit.kept"
    paths.audit_log().rename(kept)
    paths.audit_log().mkdir()
    try:
        with closing(PoolConnection.open()) as connection, closing(PoolConnection.open()) as pool:
            assert GuestSession(connection.acquire()).value("6 * 7") == 42
            assert "vm_kernel_audit_failures_total 1.0" in pool.metrics()
        assert "audit_failed" in paths.log_file().read_text()
    finally:
        paths.audit_log().rmdir()
        kept.rename(paths.audit_log())


def test_code_is_kept_only_if_asked_for_and_nothing_is_kept_if_not(configured: Callable[[str], None]) -> None:
    async def run() -> str:
        async with Sandbox() as box:
            await box.execute("answer = 6 * 7")
            await box.execute("#" + "é" * 20_000)
            return box.vm.name if box.vm is not None else ""

    configured("c.PoolConfig.audit_code = True\n")
    vm = asyncio.run(run())
    wait_until(lambda: bool(events(vm, "release")), 60.0, "the release")
    short, long = events(vm, "execution")
    assert short["code"] == "answer = 6 * 7"
    assert "code" not in long, "it does not fit into a note"
    assert long["code_sha256"] == digest("#" + "é" * 20_000)
    configured("c.PoolConfig.audit_log = False\n")
    size = paths.audit_log().stat().st_size
    asyncio.run(run())
    assert paths.audit_log().stat().st_size == size


def _row(vm: str) -> dict[str, Any]:
    with closing(PoolConnection.open()) as connection:
        return next(row for row in connection.status()["vms"] if row["name"] == vm)


def _metrics() -> str:
    with closing(PoolConnection.open()) as connection:
        return connection.metrics()


def _vm_of(pid: int) -> str:
    with closing(PoolConnection.open()) as connection:
        return next(str(row["name"]) for row in connection.status()["vms"] if (row["lease"] or {}).get("pid") == pid)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
