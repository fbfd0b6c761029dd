"""The guest lies about files: the host writes nothing outside the folder that it was told, and nothing half, ever."""

from __future__ import annotations

import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guest_agent.frames import Decoder, Kind, encode_parts, unpack_parts
from guest_agent.names import Limits, Patterns
from tests.guest.file_host import FileHost
from vm_kernel.errors import FilesystemError, GuestProtocolError, VMKernelError

Lie = Callable[["Liar"], None]


class Liar:
    """A guest that answers a request with what it likes."""

    def __init__(self, sock: socket.socket) -> None:
        self.request = 0
        self._sock = sock
        self._decoder = Decoder(frozenset({Kind.FILES}))

    def say(self, data: bytes = b"", **fields: Any) -> None:
        self.raw([json.dumps({"id": self.request, **fields}).encode(), data])

    def raw(self, parts: list[bytes]) -> None:
        for frame in encode_parts(Kind.FILES, parts):
            self._sock.sendall(b"".join(frame))

    def file(self, name: object, content: bytes = b"evil", **changes: Any) -> None:
        checksum = zlib.crc32(content)
        fields = {"t": "file", "name": name, "size": len(content), "mode": 0o777, "crc32": checksum}
        self.say(content, **fields | changes)

    def serve(self, lie: Lie) -> None:
        """Lie about every request until the host has gone."""
        try:
            while data := self._sock.recv(1 << 20):
                for _, body in self._decoder.feed(data):
                    fields = json.loads(unpack_parts(body)[0])
                    if fields.get("op") not in (None, "cancel"):
                        self.request = fields["id"]
                        lie(self)
        except OSError:
            pass


@contextmanager
def lying_guest(lie: Lie) -> Iterator[FileHost]:
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Liar(theirs).serve, args=(lie,), daemon=True)
    thread.start()
    with FileHost(ours) as host:
        yield host
    thread.join(30)
    theirs.close()


NAMES: list[object] = [
    "../up",
    "/absolute",
    "a/../../up",
    "a//b",
    "./a",
    ".",
    "..",
    "",
    "a/",
    "nul\0",
    "line\nfeed",
    "\ud800",
    "x" * 256,
    "/".join("x" * 65),
    ".hidden",
    "a/.hidden/b",
    None,
    7,
    ["a"],
]


def _endless(liar: Liar) -> None:
    for number in range(100_000):
        liar.file(f"{number}", b"")


def _endless_nothing(liar: Liar) -> None:
    liar.say(b"x", t="file", name="a", size=10, mode=0)
    for _ in range(100_000):
        liar.say(t="data")


def _endless_skips(liar: Liar) -> None:
    for _ in range(100_000):
        liar.say(t="skip", name="a", why="b")


def _flood(liar: Liar) -> None:
    liar.say(bytes(200_000), t="file", name="a", size=100_000_000, mode=0)
    for _ in range(400):
        liar.say(bytes(200_000), t="data")


LIES: dict[str, Lie] = {
    "more than announced": lambda liar: liar.file("a", b"12345", size=4),
    "more later": lambda liar: [liar.say(b"1", t="file", name="a", size=2), liar.say(b"23", t="data")],  # type: ignore[func-returns-value]
    "less": lambda liar: [liar.say(b"1", t="file", name="a", size=2), liar.say(t="done")],  # type: ignore[func-returns-value]
    "less, then another": lambda liar: [liar.say(b"1", t="file", name="a", size=2), liar.file("b")],  # type: ignore[func-returns-value]
    "wrong checksum": lambda liar: liar.file("a", crc32=0),
    "no checksum": lambda liar: liar.file("a", crc32=None),
    "negative": lambda liar: liar.file("a", b"", size=-1),
    "true": lambda liar: liar.file("a", b"x", size=True),
    "text": lambda liar: liar.file("a", b"x", size="1"),
    "huge": lambda liar: liar.file("a", size=10**30),
    "beyond the limit": lambda liar: liar.file("a", size=20_001),
    "twice": lambda liar: [liar.file("a"), liar.file("a"), liar.say(t="done")],  # type: ignore[func-returns-value]
    "file, then folder": lambda liar: [liar.file("a"), liar.say(t="dir", name="a"), liar.say(t="done")],  # type: ignore[func-returns-value]
    "folder, then file": lambda liar: [liar.say(t="dir", name="a"), liar.file("a"), liar.say(t="done")],  # type: ignore[func-returns-value]
    "folder twice": lambda liar: [liar.say(t="dir", name="a"), liar.say(t="dir", name="a")],  # type: ignore[func-returns-value]
    "below a file": lambda liar: [liar.file("a"), liar.file("a/b"), liar.say(t="done")],  # type: ignore[func-returns-value]
    "data of nothing": lambda liar: liar.say(b"x", t="data"),
    "unknown": lambda liar: liar.say(t="link", name="a", target="/etc"),
    "no type": lambda liar: liar.say(),
    "begins twice": lambda liar: [liar.say(t="begin", bytes=1), liar.say(t="begin", bytes=1)],  # type: ignore[func-returns-value]
    "endless": _endless,
    "endless nothing": _endless_nothing,
    "endless skips": _endless_skips,
    "flood": _flood,
    "acks of nothing": lambda liar: liar.say(t="ack", bytes=1_000_000),
    "no parts": lambda liar: liar.raw([]),
    "three parts": lambda liar: liar.raw([b"{}", b"", b""]),
    "no json": lambda liar: liar.raw([b"\xff", b""]),
    "a list": lambda liar: liar.raw([b"[1]", b""]),
}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where the host has been told to write; around it nothing may change."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("as it was")
    yield tmp_path / "outside/target"
    assert (tmp_path / "outside/file").read_text() == "as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["file"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_that_lead_out_are_refused(target: Path, name: object) -> None:
    for lie in (lambda liar: liar.file(name), lambda liar: liar.say(t="dir", name=name, mode=0o755)):
        with lying_guest(lie) as host, pytest.raises(FilesystemError):
            host.get_tree(".", target)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lies_are_found_out(target: Path, lie: Lie) -> None:
    with lying_guest(lie) as host:
        with pytest.raises((FilesystemError, GuestProtocolError)):
            host.get_tree(".", target, limits=Limits(20_000 if lie is not _flood else 10**9, 100))
        # into a folder that is there, too
        with pytest.raises((FilesystemError, GuestProtocolError)):
            host.get_tree(".", target.parent, limits=Limits(20_000 if lie is not _flood else 10**9, 100))


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_file_that_is_read_is_checked_as_well(lie: Lie) -> None:
    if lie in (LIES["twice"], LIES["file, then folder"], LIES["below a file"]):
        limits = Limits(20_000, 100)
    else:
        limits = Limits(20_000, 1)
    with lying_guest(lie) as host, pytest.raises(VMKernelError):
        host.request(limits).read("a")


def test_what_was_not_asked_for_is_not_taken(target: Path) -> None:
    for lie in (lambda liar: liar.file("planted.py"), lambda liar: liar.say(t="dir", name="folder", mode=0o755)):
        with lying_guest(lie) as host, pytest.raises(FilesystemError, match="nobody has asked for it"):
            host.get_tree(".", target, "*.csv")


def test_nothing_is_executed_or_writable_for_others_beyond_what_is_sensible(tmp_path: Path) -> None:
    def lie(liar: Liar) -> None:
        liar.file("a", mode=0o7777, mtime_ns=10**30)
        liar.file("b", mode="rwx", mtime_ns="now")
        liar.say(t="done")

    with lying_guest(lie) as host:
        host.get_tree(".", tmp_path / "target")
    assert (tmp_path / "target/a").stat().st_mode & 0o7022 == 0
    assert (tmp_path / "target/b").stat().st_mode & 0o111 == 0


def test_what_the_guest_says_of_an_error_is_shown_without_its_tricks() -> None:
    def lie(liar: Liar) -> None:
        liar.say(t="error", reason="\x1b[2J" + "x" * 10_000, path="\r\n" * 1000)

    with lying_guest(lie) as host, pytest.raises(FilesystemError) as caught:
        host.request().read("a")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1100


def test_a_list_is_bounded_and_checked() -> None:
    def endless(liar: Liar) -> None:
        for number in range(100_000):
            liar.say(t="item", name=str(number), kind="file", size=1, mode=1, mtime_ns=1)

    def bad(**changes: Any) -> Lie:
        item = {"t": "item", "name": "a", "kind": "file", "size": 1, "mode": 1, "mtime_ns": 1}
        return lambda liar: liar.say(**item | changes)

    numbers = (bad(size="1"), bad(size=True), bad(mtime_ns=None), bad(mtime_ns=10**400), bad(mode=1.5))
    names = (bad(name=wrong) for wrong in ("a/b", "..", ".", "", "a\0", "x" * 256, 1, ["a"]))
    for lie in (endless, bad(kind="door"), bad(kind=["file"]), bad(kind={}), *numbers, *names):
        with lying_guest(lie) as host, pytest.raises((FilesystemError, GuestProtocolError)):
            host.request().entries(".")


def test_a_put_is_not_confused() -> None:
    lies: list[Lie] = [
        lambda liar: liar.say(t="ack", bytes=10**9),
        lambda liar: liar.say(t="made", paths="abc"),
        lambda liar: liar.say(t="made", paths=[["a"]]),
        lambda liar: liar.say(t="made", paths=["a" * 5000]),
        lambda liar: [liar.say(t="made", paths=[f"{n}-{m}" for m in range(500)]) for n in range(500)],  # type: ignore[func-returns-value]
        lambda liar: liar.file("a"),
        lambda liar: liar.say(t="ack", bytes=-1),
    ]
    for lie in lies:
        with lying_guest(lie) as host, pytest.raises(FilesystemError):
            host.request().put_bytes(bytes(5_000_000), "file")


@pytest.mark.timeout(60)
def test_names_made_for_a_pattern_do_not_keep_the_host_busy() -> None:
    """A pattern with stars used to be tried in every way there is, and no thread of the process ran meanwhile."""
    patterns = Patterns(["*a*a*a*a*a*a*a*b", "**/a*/**/a*/**/a*/**/a*/**/b"])
    assert not patterns.match(["a" * 255] * 16)
    assert not patterns.match(["aa"] * 64)
    assert patterns.match(["aaaaaaab"])
