"""Checks what arrives in a copy of files, message by message. Used by both ends; where files go is in tree_writer.py.

Nothing is believed: names, sizes and checksums are checked, entries counted. See tree_reader.py for the messages.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

from guest_agent.names import Limits, Patterns, TreeError, tree_parts


class Incoming:
    """One file that is being received. ``write`` gets its bytes."""

    def __init__(self, name: str, size: int, write: Callable[[bytes], object]) -> None:
        self.name = name
        self._write = write
        self._left = size
        self._checksum = 0

    def take(self, fields: dict[str, Any], data: bytes) -> bool:
        """The next piece. True if it was the last one and the checksum is right. Raises TreeError, OSError."""
        if len(data) > self._left:
            raise TreeError("has more bytes than were announced", self.name)
        if not data and self._left:
            raise TreeError("a message without data", self.name)
        self._checksum = zlib.crc32(data, self._checksum)
        self._write(data)
        self._left -= len(data)
        if self._left:
            return False
        if fields.get("crc32") != self._checksum:
            raise TreeError("has arrived damaged: its checksum is wrong", self.name)
        return True


class Receiver:
    """Checks the messages of one copy against its limits. What becomes of the files is in its subclasses."""

    def __init__(self, limits: Limits, patterns: Patterns) -> None:
        self._limits = limits
        self._patterns = patterns
        self._incoming: Incoming | None = None
        self._begun = False
        self.entries = 0
        self.bytes = 0
        #: as announced, for a progress bar and nothing else
        self.total = 0
        self.received = 0
        self.skipped: list[tuple[str, str]] = []

    def take(self, fields: dict[str, Any], data: bytes) -> None:
        """The next message. Raises TreeError, OSError."""
        kind = fields.get("t")
        if kind == "data" and self._incoming is not None:
            self._piece(fields, data)
        elif self._incoming is not None:
            raise TreeError("is followed by something else before its end", self._incoming.name)
        elif kind == "file":
            size, parts = fields.get("size"), self._named(fields)
            if type(size) is not int or size < 0:
                raise TreeError("a file without a size", "/".join(parts))
            self._count(size, parts)
            self._incoming = self._begin_file(parts, size, fields)
            self._piece(fields, data)
        elif kind == "dir":
            parts = self._named(fields)
            self._count(0, parts)
            self._make_folder(parts, mode_of(fields))
        elif kind == "begin" and not self._begun:
            self._begun = True
            size = fields.get("bytes")
            self.total = size if type(size) is int and 0 <= size <= self._limits.max_bytes else 0
        elif kind == "skip":
            self._note_skipped(fields)
        else:
            raise TreeError("a message that is out of place")

    def check_complete(self) -> None:
        """Raises TreeError if a file has not arrived whole."""
        if self._incoming is not None:
            raise TreeError("has not arrived whole", self._incoming.name)

    def _piece(self, fields: dict[str, Any], data: bytes) -> None:
        assert self._incoming is not None
        self.received += len(data)
        if self._incoming.take(fields, data):
            self._incoming = None
            self._end_file()

    def _named(self, fields: dict[str, Any]) -> list[str]:
        parts = tree_parts(fields.get("name"))
        if not self._patterns.match(parts):
            raise TreeError("nobody has asked for it", "/".join(parts))
        return parts

    def _count(self, size: int, parts: Sequence[str]) -> None:
        """One more entry. Raises TreeError beyond the limits."""
        self.entries += 1
        self.bytes += size
        if self.entries > self._limits.max_entries or self.bytes > self._limits.max_bytes:
            raise TreeError(
                f"is beyond the limit of {self._limits.max_bytes} bytes, {self._limits.max_entries} files and folders",
                "/".join(parts),
            )

    def _note_skipped(self, fields: dict[str, Any]) -> None:
        self._count(0, ())
        name, why = str(fields.get("name"))[:200], str(fields.get("why"))[:60]
        self.skipped.append((_printable(name), _printable(why)))

    def _begin_file(self, parts: list[str], size: int, fields: dict[str, Any]) -> Incoming:
        raise NotImplementedError

    def _end_file(self) -> None:
        raise NotImplementedError

    def _make_folder(self, parts: list[str], mode: int) -> None:
        raise NotImplementedError


class MemoryReceiver(Receiver):
    """Receives exactly one file, into memory."""

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits._replace(max_entries=1), Patterns(hidden=True))
        self.content = bytearray()

    def _begin_file(self, parts: list[str], size: int, fields: dict[str, Any]) -> Incoming:
        return Incoming("/".join(parts), size, self.content.extend)

    def _end_file(self) -> None:
        pass

    def _make_folder(self, parts: list[str], mode: int) -> None:
        raise TreeError("a folder instead of a file", "/".join(parts))


def mode_of(fields: dict[str, Any]) -> int:
    """Permissions that a file may bring with it: nobody else may write it, and nothing runs as somebody else."""
    mode = fields.get("mode")
    return (mode & 0o755 | 0o600) if type(mode) is int else 0o644


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
