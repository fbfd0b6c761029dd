"""The sending half of a copy of files: find what is there, then turn it into messages. Used by both ends.

Links are never followed: symbolic links and everything that is neither file nor folder are left out, and said so.

Messages, as (fields, data): ``{"t": "begin", "bytes", "entries"}``, then ``{"t": "dir", "name", "mode"}`` for each
folder and ``{"t": "file", "name", "size", "mode", "mtime_ns"}`` for each file, with its first bytes; the next ones come
as ``{"t": "data"}``. The message with a file's last byte also has its ``crc32``. ``{"t": "skip", "name", "why"}`` names
what was left out.

The checksum is against mistakes on the way, for who lies can compute any digest of a lie; and a guest without KVM
computes SHA-256 at 16 MB/s, CRC-32 at 170.
"""

from __future__ import annotations

import contextlib
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from guest_agent.names import Limits, Patterns, TreeError, reason_of, tree_parts

#: bytes of a file in one message: with its header it fits into one frame
CHUNK = 240 * 1024
#: links and the like that are reported by name; more are only left out
MAX_REPORTED = 100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that takes the place of a file must not make us wait for its writer
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_KINDS = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFLNK: "link"}

Message = tuple[dict[str, Any], bytes]


class Entry(NamedTuple):
    """A file or folder in a tree."""

    parts: tuple[str, ...]
    is_folder: bool
    size: int
    mode: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """With ``/`` between its components."""
        return "/".join(self.parts)


class Found(NamedTuple):
    """What there is to copy. A folder comes before what is in it."""

    entries: list[Entry]
    skipped: list[tuple[str, str]]
    bytes: int


def open_folder(anchor: int, parts: Sequence[str]) -> int:
    """A descriptor of the folder below ``anchor``, reached without following a link. Raises OSError."""
    fd = os.open(".", _FOLDER, dir_fd=anchor)
    for part in parts:
        try:
            below = os.open(part, _FOLDER, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def scan(root: int, patterns: Patterns, limits: Limits) -> Found:
    """Everything below the folder ``root`` that the patterns mean. Raises TreeError, OSError."""
    return _Scan(patterns, limits).run(root)


def single(folder: int, name: str, limits: Limits) -> Found:
    """One file in a folder. Raises TreeError, OSError."""
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(status.st_mode):
        raise TreeError(_what(status.st_mode) + ", not a file", name)
    if status.st_size > limits.max_bytes:
        raise TreeError(f"has {status.st_size} bytes; the limit is {limits.max_bytes}", name)
    return Found([_entry((name,), status)], [], status.st_size)


def kind_of(folder: int, name: str) -> str:
    """What is called so in a folder: file, folder, link or other. Raises OSError."""
    mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    return _KINDS.get(stat.S_IFMT(mode), "other")


def listing(folder: int, limits: Limits) -> Iterator[dict[str, Any]]:
    """A message for each thing in a folder, in the order of their names. Raises TreeError, OSError."""
    for name in _names(folder, limits.max_entries):
        with contextlib.suppress(FileNotFoundError, TreeError):
            status = os.stat(tree_parts(name)[0], dir_fd=folder, follow_symlinks=False)
            yield {
                "t": "item",
                "name": name,
                "kind": _KINDS.get(stat.S_IFMT(status.st_mode), "other"),
                "size": status.st_size,
                "mode": stat.S_IMODE(status.st_mode),
                "mtime_ns": status.st_mtime_ns,
            }


def messages(root: int, found: Found) -> Iterator[Message]:
    """What to send for it. Raises TreeError, OSError, also when something has changed since the scan."""
    yield {"t": "begin", "bytes": found.bytes, "entries": len(found.entries)}, b""
    for name, why in found.skipped:
        yield {"t": "skip", "name": name, "why": why}, b""
    for entry in found.entries:
        if entry.is_folder:
            yield {"t": "dir", "name": entry.name, "mode": entry.mode}, b""
        else:
            yield from _file(root, entry)


def messages_of_bytes(name: str, content: bytes, mode: int) -> Iterator[Message]:
    """What to send for one file that is in memory."""
    yield {"t": "begin", "bytes": len(content), "entries": 1}, b""
    fields = {"t": "file", "name": name, "size": len(content), "mode": mode}
    pieces = (content[at : at + CHUNK] for at in range(0, len(content), CHUNK))
    yield from _pieces(fields, len(content), pieces)


def _file(root: int, entry: Entry) -> Iterator[Message]:
    try:
        folder = open_folder(root, entry.parts[:-1])
        try:
            fd = os.open(entry.parts[-1], _FILE, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise TreeError(reason_of(error), entry.name) from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            raise TreeError("has changed while it was being copied", entry.name)
        entry = _entry(entry.parts, status)
        fields = {"t": "file", "name": entry.name, "size": entry.size, "mode": entry.mode, "mtime_ns": entry.mtime_ns}
        yield from _pieces(fields, entry.size, _read(fd, entry))
    finally:
        os.close(fd)


def _read(fd: int, entry: Entry) -> Iterator[bytes]:
    left = entry.size
    while left:
        piece = os.read(fd, min(CHUNK, left))
        if not piece:
            raise TreeError("has become shorter while it was being copied", entry.name)
        left -= len(piece)
        yield piece


def _pieces(fields: dict[str, Any], size: int, pieces: Iterator[bytes]) -> Iterator[Message]:
    checksum, left = 0, size
    while True:
        piece = next(pieces, b"")
        checksum = zlib.crc32(piece, checksum)
        left -= len(piece)
        if not left:
            fields["crc32"] = checksum
        yield fields, piece
        if not left:
            return
        fields = {"t": "data"}


def _entry(parts: tuple[str, ...], status: os.stat_result) -> Entry:
    is_folder = stat.S_ISDIR(status.st_mode)
    size = 0 if is_folder else status.st_size
    return Entry(parts, is_folder, size, stat.S_IMODE(status.st_mode), status.st_mtime_ns)


def _what(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a symbolic link" if stat.S_ISLNK(mode) else "a device, socket or pipe"


def _names(folder: int, limit: int) -> list[str]:
    names: list[str] = []
    with os.scandir(folder) as items:
        for item in items:
            names.append(item.name)
            if len(names) > limit:
                raise TreeError(f"a folder with more than {limit} entries")
    return sorted(names)


class _Scan:
    """One walk over a tree."""

    def __init__(self, patterns: Patterns, limits: Limits) -> None:
        self._patterns = patterns
        self._limits = limits
        self._found: list[Entry] = []
        self._skipped: list[tuple[str, str]] = []
        self._bytes = 0

    def run(self, root: int) -> Found:
        folder = open_folder(root, ())
        self._walk(folder, ())
        return Found(self._found, self._skipped, self._bytes)

    def _walk(self, folder: int, above: tuple[str, ...]) -> None:
        """Closes ``folder``."""
        try:
            for name in _names(folder, self._limits.max_entries):
                self._look_at(folder, name, above)
        finally:
            os.close(folder)

    def _look_at(self, folder: int, name: str, above: tuple[str, ...]) -> None:
        parts = (*above, name)
        if name.startswith(".") and not self._patterns.hidden:
            return
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        chosen = self._patterns.match(parts)
        entry = _entry(parts, status)
        why = self._reason_to_skip(entry, status.st_mode)
        if why:
            if chosen and len(self._skipped) < MAX_REPORTED:
                self._skipped.append(("".join(c if c.isprintable() else "?" for c in "/".join(parts))[:200], why))
            return
        if chosen:
            self._add(entry)
        if entry.is_folder:
            try:
                below = os.open(name, _FOLDER, dir_fd=folder)
            except OSError as error:
                raise TreeError(reason_of(error), entry.name) from None
            self._walk(below, parts)

    def _reason_to_skip(self, entry: Entry, mode: int) -> str:
        if not entry.is_folder and not stat.S_ISREG(mode):
            return _what(mode)
        try:
            tree_parts(entry.name)
        except TreeError as error:
            return error.reason
        return ""

    def _add(self, entry: Entry) -> None:
        self._found.append(entry)
        self._bytes += entry.size
        if self._bytes > self._limits.max_bytes or len(self._found) > self._limits.max_entries:
            raise TreeError(
                f"more than {self._limits.max_bytes} bytes or {self._limits.max_entries} files and folders are there",
                entry.name,
            )
