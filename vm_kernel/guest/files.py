"""The host's half of file transfers: what can be asked of the guest's worker, whose answers are hostile input.

The methods of a ``FileRequest`` block and are called in a thread, by the Python API and by the kernel process. What is
copied where on the host is the caller's decision. See tree_reader.py and tree_receiver.py in ``guest_agent`` for the
messages and how they are checked; how they travel is in file_channel.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from guest_agent import tree_reader
from guest_agent.file_link import Link
from guest_agent.frames import FrameError
from guest_agent.names import MAX_COMPONENT, MAX_NAME, Patterns, TreeError, path_parts
from guest_agent.tree_receiver import MemoryReceiver, Receiver
from guest_agent.tree_writer import TreeWriter
from vm_kernel.errors import FilesystemError
from vm_kernel.guest.file_channel import Request, check_path, host_errors

_KINDS = ("file", "folder", "link", "other")
#: numbers of a file that are believed: they fit into 63 bits
_MAX_NUMBER = (1 << 63) - 1


class FileEntry(NamedTuple):
    """Something in a folder of the guest. kind: file, folder, link or other. mtime: seconds since 1970."""

    name: str
    kind: str
    size: int
    mode: int
    mtime: float


class Transfer(NamedTuple):
    """What a copy came to. skipped: names and reasons of what was left out: links, devices, sockets."""

    files: int
    bytes: int
    skipped: list[tuple[str, str]]


class Put(NamedTuple):
    """What has been put into the guest. paths: of the files; made: folders that were not there before."""

    transfer: Transfer
    paths: list[str]
    made: list[str]


class FileRequest(Request):
    """One transfer. Each object is good for one call of one of its methods, which block.

    All of them raise FilesystemError, or what ended the VM.
    """

    def put_tree(self, root: int, target: str, patterns: Patterns, overwrite: bool = True) -> Put:
        """Copy what the patterns mean below the host's folder ``root`` (a descriptor) into a folder of the guest."""
        with host_errors(target):
            found = tree_reader.scan(root, patterns, self.limits)
        return self._put(tree_reader.messages(root, found), found.bytes, target, found.skipped, overwrite)

    def put_file(self, folder: int, name: str, target: str, overwrite: bool = True) -> Put:
        """Copy one file of the host's folder ``folder`` (a descriptor) to the path ``target`` in the guest."""
        self.noted_path = target
        above, target_name = _split(target)
        with host_errors(name):
            found = tree_reader.single(folder, name, self.limits)
        return self._put(_renamed(tree_reader.messages(folder, found), target_name), found.bytes, above, [], overwrite)

    def put_bytes(self, content: bytes, target: str, mode: int = 0o644, overwrite: bool = True) -> Put:
        """Make a file of these bytes in the guest."""
        if len(content) > self.limits.max_bytes:
            raise FilesystemError(
                f"{target}: {len(content)} bytes are more than the limit of {self.limits.max_bytes}.", path=target
            )
        self.noted_path = target
        above, name = _split(target)
        return self._put(tree_reader.messages_of_bytes(name, content, mode), len(content), above, [], overwrite)

    def get_tree(self, source: str, writer: TreeWriter, patterns: Patterns) -> Transfer:
        """Copy what the patterns mean below a folder of the guest. Commits ``writer``, or aborts it."""
        try:
            with self.ask("get", source, patterns=patterns.patterns, hidden=patterns.hidden) as link:
                transfer = self._receive(link, writer)
                writer.commit()
                return transfer
        finally:
            writer.abort()

    def get_file(self, source: str, writer: TreeWriter, name: str) -> Transfer:
        """Copy one file of the guest, to the file ``name``. Commits ``writer``, or aborts it."""
        try:
            with self.ask("read", source) as link:
                transfer = self._receive(link, writer, name)
                if transfer.files != 1:
                    raise TreeError("has not arrived", source)
                writer.commit()
                return transfer
        finally:
            writer.abort()

    def read(self, source: str) -> bytes:
        """The content of a file of the guest."""
        receiver = MemoryReceiver(self.limits)
        with self.ask("read", source) as link:
            if self._receive(link, receiver).files != 1:
                raise TreeError("has not arrived", source)
        return bytes(receiver.content)

    def kind(self, path: str) -> str:
        """What a path in the guest is: file, folder, link or other."""
        with self.ask("stat", path) as link:
            kind = link.until_done(_nothing).get("kind")
        return str(kind) if kind in _KINDS else "other"

    def entries(self, source: str) -> list[FileEntry]:
        """What is in a folder of the guest, by name."""
        found: list[FileEntry] = []

        def take(fields: dict[str, Any], _: bytes) -> None:
            if fields.get("t") != "item" or len(found) >= self.limits.max_entries:
                raise FrameError("a FILES message that is out of place")
            found.append(parse_entry(fields))

        with self.ask("list", source) as link:
            link.until_done(take)
        return found

    def remove(self, paths: Sequence[str]) -> int:
        """Remove files, and folders if they are empty, in that order; how many of them were there."""
        with self.ask("remove", "") as link:
            for path in paths:
                link.send({"t": "path", "path": path})
            link.send({"t": "done"})
            removed = link.until_done(_nothing).get("removed")
        return removed if type(removed) is int and 0 <= removed <= len(paths) else 0

    def _put(
        self,
        messages: Iterator[tree_reader.Message],
        total: int,
        target: str,
        skipped: list[tuple[str, str]],
        overwrite: bool,
    ) -> Put:
        names: list[str] = []
        made: dict[str, None] = {}
        done = 0

        def take(fields: dict[str, Any], _: bytes) -> None:
            paths = fields.get("paths")
            if fields.get("t") != "made" or not isinstance(paths, list):
                raise FrameError("a FILES message that is out of place")
            for path in paths:
                if not isinstance(path, str) or len(path) > MAX_NAME or len(made) >= self.limits.max_entries:
                    raise FrameError("a folder that cannot have been made")
                made[path] = None

        with self.ask("put", target, overwrite=overwrite) as link:
            for fields, data in messages:
                if fields["t"] == "skip":
                    continue
                if fields["t"] == "file":
                    names.append(fields["name"])
                    self.files += 1
                link.send(fields, data)
                done += len(data)
                self.tell(done, total)
            link.send({"t": "done"})
            link.until_done(take)
        prefix = "" if target == "." else target.rstrip("/") + "/"
        return Put(Transfer(len(names), done, skipped), [prefix + name for name in names], [*made])

    def _receive(self, link: Link, receiver: Receiver, name: str = "") -> Transfer:
        def take(fields: dict[str, Any], data: bytes) -> None:
            receiver.take(fields | {"name": name} if name and "name" in fields else fields, data)
            self.files += fields.get("t") == "file"
            self.tell(receiver.received, max(receiver.total, receiver.bytes))

        link.until_done(take)
        receiver.check_complete()
        return Transfer(self.files, receiver.received, receiver.skipped)


def _split(target: str) -> tuple[str, str]:
    """Folder and name of a file's path in the guest."""
    check_path(target)
    absolute, parts = path_parts(target)
    if not parts or target.endswith("/"):
        raise FilesystemError(f"{target}: is the name of a folder, not of a file.", path=target)
    return ("/" if absolute else "") + "/".join(parts[:-1]) or ".", parts[-1]


def _renamed(messages: Iterator[tree_reader.Message], name: str) -> Iterator[tree_reader.Message]:
    for fields, data in messages:
        yield (fields | {"name": name} if "name" in fields else fields), data


def parse_entry(fields: dict[str, Any]) -> FileEntry:
    """What an "item" says. Raises FrameError if no folder contains that."""
    name, kind, numbers = fields.get("name"), fields.get("kind"), [fields.get(n) for n in ("size", "mode", "mtime_ns")]
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name or len(name) > MAX_COMPONENT:
        raise FrameError("an entry of a folder that is none")
    if kind not in _KINDS or not all(type(n) is int and abs(n) <= _MAX_NUMBER for n in numbers):
        raise FrameError("an entry of a folder that is none")
    size, mode, mtime_ns = (int(number or 0) for number in numbers)
    return FileEntry(name, str(kind), size, mode, mtime_ns / 1e9)


def _nothing(fields: dict[str, Any], data: bytes) -> None:
    raise FrameError("a FILES message that is out of place")
