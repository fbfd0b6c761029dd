"""Files between host and guest, with the agent and its worker in ordinary processes: what arrives, and what is left.

With a guest that lies: test_lying_files.py. In VMs: tests/sandbox/test_files.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from guest_agent.names import Limits, Patterns, TreeError
from guest_agent.tree_writer import STAGING_PREFIX, TreeWriter
from tests.guest.file_host import LIMITS, FileHost
from vm_kernel.errors import FilesystemError, VMDied
from vm_kernel.guest import file_channel


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where relative paths of the guest begin."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def agent(home: Path) -> Iterator[tuple[FileHost, subprocess.Popen[bytes]]]:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "guest_agent.agent", "--local", str(theirs.fileno())]
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=home, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
        )
    with FileHost(ours) as host:
        yield host, process
    process.wait(30)


@pytest.fixture
def host(agent: tuple[FileHost, subprocess.Popen[bytes]], home: Path) -> Iterator[FileHost]:
    yield agent[0]
    left = [path for path in home.rglob("*") if path.name.startswith(STAGING_PREFIX)]
    assert not left, "something half-written is left in the guest"


def content_of(folder: Path) -> dict[str, tuple[bytes | None, bool]]:
    """Every file and folder: its bytes, and whether it may be executed."""
    found = {}
    for path in folder.rglob("*"):
        is_file = path.is_file()
        found[str(path.relative_to(folder))] = (
            path.read_bytes() if is_file else None,
            is_file and os.access(path, os.X_OK),
        )
    return found


def make_tree(folder: Path) -> Path:
    (folder / "a/b/c/d/e/f/g").mkdir(parents=True)
    (folder / "empty folder").mkdir()
    (folder / "a/b/c/d/e/f/g/deep.bin").write_bytes(os.urandom(1000))
    (folder / "empty").touch()
    (folder / "one").write_bytes(b"\0")
    (folder / "naïve 文件 🐍.txt").write_text("grün")
    (folder / "script.sh").write_text("#!/bin/sh\n")
    (folder / "script.sh").chmod(0o755)
    (folder / "large").write_bytes(os.urandom(3_000_001))
    os.utime(folder / "one", (1_000_000_000, 1_000_000_000))
    return folder


@pytest.mark.parametrize("content", [b"", b"x", os.urandom(240 * 1024), os.urandom(240 * 1024 + 1), b"z" * 5_000_000])
def test_bytes_come_back_as_they_were(host: FileHost, home: Path, content: bytes) -> None:
    put = host.request().put_bytes(content, "some/folder/file.bin")
    assert put.transfer.bytes == len(content)
    assert put.paths == ["some/folder/file.bin"]
    assert (home / "some/folder/file.bin").read_bytes() == content
    assert host.request().read("some/folder/file.bin") == content
    assert host.request().read(str(home / "some/folder/file.bin")) == content


def test_fifty_megabytes_both_ways_with_progress(host: FileHost, home: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(50_000_000))
    seen: list[tuple[int, int]] = []
    folder = os.open(tmp_path, os.O_RDONLY)
    host.request(progress=lambda done, total: seen.append((done, total))).put_file(folder, "large", "large")
    os.close(folder)
    assert seen[-1] == (50_000_000, 50_000_000)
    assert seen == sorted(seen)
    assert len(seen) > 100
    assert (home / "large").read_bytes() == (tmp_path / "large").read_bytes()
    assert host.get_tree(".", tmp_path / "back", "large").bytes == 50_000_000
    assert (tmp_path / "back/large").read_bytes() == (tmp_path / "large").read_bytes()
    (home / "large").unlink()


def test_a_tree_goes_there_and_back(host: FileHost, home: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    put = host.put_tree(tree, "work/tree")
    assert put.transfer == (6, 1000 + 1 + len("grün".encode()) + 10 + 3_000_001, [])
    assert content_of(home / "work/tree") == content_of(tree)
    assert set(put.made) >= {"work", "work/tree", "work/tree/a/b"}
    back = host.get_tree("work/tree", tmp_path / "x/back")
    assert content_of(tmp_path / "x/back") == content_of(tree)
    assert (tmp_path / "x/back/one").stat().st_mtime == 1_000_000_000
    assert back.files == 6
    # again, into what is there now: files are replaced, others stay
    (tree / "one").write_bytes(b"changed")
    (home / "work/tree/own").write_text("the guest's")
    assert host.put_tree(tree, "work/tree").made == []
    assert (home / "work/tree/one").read_bytes() == b"changed"
    assert (home / "work/tree/own").read_text() == "the guest's"


def test_links_and_devices_are_left_out_and_said(host: FileHost, home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not copy")
    for tree in (tmp_path / "tree", home / "tree with links"):
        tree.mkdir()
        (tree / "file").write_text("x")
        (tree / "link").symlink_to(secret)
        (tree / "folder").symlink_to(tmp_path)
        os.mkfifo(tree / "pipe")
    expected = {"link": "a symbolic link", "folder": "a symbolic link", "pipe": "a device, socket or pipe"}
    put = host.put_tree(tmp_path / "tree", "without links")
    assert dict(put.transfer.skipped) == expected
    assert content_of(home / "without links") == {"file": (b"x", False)}
    got = host.get_tree("tree with links", tmp_path / "got")
    assert dict(got.skipped) == expected
    assert content_of(tmp_path / "got") == {"file": (b"x", False)}
    for path in ("tree with links/link", "tree with links/folder/secret", "tree with links/pipe", "tree with links"):
        with pytest.raises(FilesystemError) as caught:
            host.request().read(path)
        assert caught.value.path
    with pytest.raises(FilesystemError, match="link"):
        host.request().put_bytes(b"x", "tree with links/folder/planted")
    with pytest.raises(FilesystemError, match="in the way"):
        host.request().put_bytes(b"x", "tree with links/link")
    assert secret.read_text() == "do not copy"
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("path", ["../up", "a/../../up", "", "nul\0", "new\nline", "x" * 300, "/".join("x" * 70)])
def test_paths_that_lead_astray_are_refused(host: FileHost, home: Path, path: str) -> None:
    for call in (host.request().read, host.request().entries, lambda p: host.request().put_bytes(b"x", p)):
        with pytest.raises(FilesystemError):
            call(path)
    assert not (home.parent / "up").exists()


def test_what_is_not_there_or_not_allowed_is_named(host: FileHost, home: Path) -> None:
    (home / "file").write_text("x")
    for call, words in (
        (lambda: host.request().read("none/at/all"), "none/at/all: No such file"),
        (lambda: host.request().entries("none"), "none: No such file"),
        (lambda: host.request().entries("file"), "file: a symbolic link, or no folder"),
        (lambda: host.request().put_bytes(b"x", "file/below"), "file: a symbolic link, or no folder"),
        (lambda: host.request().put_bytes(b"x", "folder/"), "name of a folder"),
    ):
        with pytest.raises(FilesystemError, match=words) as caught:
            call()
        assert caught.value.path


def test_limits_hold_in_both_directions(host: FileHost, home: Path, tmp_path: Path) -> None:
    few = Limits(1000, 3)
    with pytest.raises(FilesystemError, match="limit of 1000"):
        host.request(few).put_bytes(b"x" * 1001, "too-large")
    (home / "big").mkdir()
    (home / "big/file").write_bytes(b"x" * 1001)
    with pytest.raises(FilesystemError, match="limit is 1000"):
        host.request(few).read("big/file")
    with pytest.raises(FilesystemError, match="more than 1000 bytes"):
        host.get_tree("big", tmp_path / "got", limits=few)
    (home / "many").mkdir()
    for number in range(4):
        (home / f"many/{number}").touch()
    with pytest.raises(FilesystemError, match="more than 3 entries"):
        host.get_tree("many", tmp_path / "got", limits=few)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_listed(host: FileHost, home: Path) -> None:
    (home / "listed/below").mkdir(parents=True)
    (home / "listed/file").write_bytes(b"12345")
    (home / "listed/link").symlink_to("file")
    entries = host.request().entries("listed")
    assert [(entry.name, entry.kind) for entry in entries] == [("below", "folder"), ("file", "file"), ("link", "link")]
    assert entries[1].size == 5
    assert entries[1].mtime > 1_600_000_000


def test_patterns_choose(host: FileHost, home: Path, tmp_path: Path) -> None:
    for name in ("p/a.csv", "p/x/b.csv", "p/x/y/c.csv", "p/x/d.txt", "p/.hidden/e.csv", "p/.f.csv"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    for number, (pattern, hidden, names) in enumerate(
        (
            ("*.csv", False, {"a.csv"}),
            ("**/*.csv", False, {"a.csv", "x/b.csv", "x/y/c.csv"}),
            ("x", False, {"x/b.csv", "x/d.txt", "x/y/c.csv"}),
            ("x/*.???", False, {"x/b.csv", "x/d.txt"}),
            ("**", True, {"a.csv", "x/b.csv", "x/y/c.csv", "x/d.txt", ".hidden/e.csv", ".f.csv"}),
            ("x/[!d].csv", False, {"x/b.csv"}),
        )
    ):
        target = tmp_path / str(number)
        host.get_tree("p", target, pattern, hidden)
        assert {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()} == names, pattern


def test_patterns_that_mean_nothing_are_refused() -> None:
    for pattern in ("/absolute", "../up", "", "[z-a]"):
        with pytest.raises(TreeError):
            Patterns([pattern])


def test_without_overwrite_nothing_of_the_hosts_is_touched(host: FileHost, home: Path, tmp_path: Path) -> None:
    (home / "new").mkdir()
    for name in ("a", "b"):
        (home / "new" / name).write_text("new")
    (tmp_path / "b").write_text("old")
    with pytest.raises(FilesystemError, match="b: is there already"):
        host.get_tree("new", tmp_path, overwrite=False)
    assert content_of(tmp_path) == {"b": (b"old", False)}
    host.get_tree("new", tmp_path, "a", overwrite=False)
    host.get_tree("new", tmp_path)
    assert content_of(tmp_path) == {"a": (b"new", False), "b": (b"new", False)}


def test_a_link_in_the_hosts_target_is_not_followed(host: FileHost, home: Path, tmp_path: Path) -> None:
    (home / "evil/sub").mkdir(parents=True)
    (home / "evil/sub/file").write_text("x")
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    target.mkdir()
    (target / "sub").symlink_to(outside)
    with pytest.raises(FilesystemError):
        host.get_tree("evil", target)
    assert list(outside.iterdir()) == []
    assert [path.name for path in target.iterdir()] == ["sub"]


@pytest.mark.parametrize("direction", ["put", "get"])
def test_a_cancelled_transfer_leaves_nothing_and_the_next_one_works(
    host: FileHost, home: Path, tmp_path: Path, direction: str
) -> None:
    source = tmp_path / "source" if direction == "put" else home / "source"
    source.mkdir()
    (source / "large").write_bytes(bytes(100_000_000))
    target = home / "cancelled" if direction == "put" else tmp_path / "cancelled"
    begun = threading.Event()
    request = host.request(progress=lambda done, total: begun.set())

    def cancel() -> None:
        begun.wait(60)
        request.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    host.request, original = (lambda *_: request), host.request  # type: ignore[method-assign, assignment]
    try:
        with pytest.raises(FilesystemError, match="given up"):
            if direction == "put":
                host.put_tree(source, "cancelled")
            else:
                host.get_tree("source", target)
    finally:
        host.request = original  # type: ignore[method-assign]
    thread.join()
    host.request().put_bytes(b"x", "after")
    assert not target.exists()
    assert not [path for path in target.parent.iterdir() if path.name.startswith(STAGING_PREFIX)]
    (source / "large").unlink()
    source.rmdir()


def test_a_worker_that_dies_is_said_and_replaced(
    agent: tuple[FileHost, subprocess.Popen[bytes]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, process = agent
    host.request().put_bytes(bytes(100_000_000), "source")

    def worker() -> psutil.Process:
        children = psutil.Process(process.pid).children()
        return next(child for child in children if child.cmdline() == psutil.Process(process.pid).cmdline())

    victim = worker()

    def kill(done: int, total: int) -> None:
        if done > 10_000_000:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()

    with pytest.raises(FilesystemError, match="has ended; the next request starts another"):
        host.request(progress=kill).read("source")
    assert host.request().entries(".")
    assert worker().pid != victim.pid
    # one that hangs is ended as well
    hanging = worker()
    hanging.suspend()
    monkeypatch.setattr(file_channel, "STALL_S", 1.0)
    with pytest.raises(FilesystemError, match="has said nothing"):
        host.request().read("source")
    monkeypatch.undo()
    assert host.request().entries(".")
    assert worker().pid != hanging.pid
    (home / "source").unlink()


def test_a_guest_that_ends_in_the_middle_leaves_nothing_on_the_host(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "guest_agent.agent", "--local", str(theirs.fileno())]
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
        )
    (tmp_path / "source").mkdir()
    (tmp_path / "source/large").write_bytes(bytes(100_000_000))
    with FileHost(ours) as host:
        host.request().entries(".")
        children = psutil.Process(process.pid).children(recursive=True)
        patterns = Patterns()
        anchor = os.open(tmp_path, os.O_RDONLY)
        writer = TreeWriter(anchor, ["target"], LIMITS, patterns)
        os.close(anchor)

        def kill(done: int, total: int) -> None:
            for each in (process, *children):
                each.kill()

        with pytest.raises(VMDied):
            host.request(progress=kill).get_tree("source", writer, patterns)
    process.wait(30)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
