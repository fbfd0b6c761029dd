"""Writes the files of a copy below a folder, never outside it, all of them or none. Used by both ends.

Files are written into a staging folder, where nobody but us has put anything, and moved to their place when all of
them have arrived. Until ``commit`` nothing is seen of them, and ``abort`` leaves nothing behind. Folders are walked a
name at a time, and no link is followed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from typing import Any

from guest_agent.names import Limits, Patterns, TreeError, reason_of
from guest_agent.tree_reader import open_folder
from guest_agent.tree_receiver import Incoming, Receiver, mode_of

#: how the staging folder is called while files arrive
STAGING_PREFIX = ".vm-kernel-"
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PRIVATE = 0o700
_FOLDER_MODE = 0o755
#: until the year 2100
_MAX_TIME_NS = 4_102_444_800_000_000_000


class TreeWriter(Receiver):
    """Receives a tree into the folder ``parts`` below ``anchor``; made if it is not there, else added to.

    ``overwrite``: files that are there already are replaced; otherwise they make ``commit`` fail. Ends with commit()
    or abort(). Raises TreeError, OSError. ``anchor`` stays the caller's.
    """

    def __init__(
        self, anchor: int, parts: Sequence[str], limits: Limits, patterns: Patterns, overwrite: bool = True
    ) -> None:
        super().__init__(limits, patterns)
        self._overwrite = overwrite
        self._file = -1
        self._mtime_ns: int | None = None
        self._names: list[tuple[list[str], bool]] = []
        self._parts = list(parts)
        self._base, self._missing = _deepest(anchor, self._parts)
        self._staging_name = STAGING_PREFIX + secrets.token_hex(8)
        self._tree = -1
        try:
            os.mkdir(self._staging_name, _PRIVATE, dir_fd=self._base)
            os.mkdir(f"{self._staging_name}/tree", dir_fd=self._base)
            self._tree = open_folder(self._base, [self._staging_name, "tree"])
        except BaseException:
            self.abort()
            raise

    def commit(self) -> list[str]:
        """Move what has arrived to its place; the folders that were made for it, as paths below ``anchor``.

        Raises TreeError if it is not whole, or something is in the way; then nothing has been moved.
        """
        self.check_complete()
        made = self._move_all() if self._missing else self._merge()
        self.abort()
        return made

    def abort(self) -> None:
        """Forget what has not been committed. Safe to call twice."""
        for fd in (self._file, self._tree):
            if fd >= 0:
                os.close(fd)
        self._file = self._tree = -1
        if self._base >= 0:
            shutil.rmtree(self._staging_name, ignore_errors=True, dir_fd=self._base)
            os.close(self._base)
            self._base = -1

    def _begin_file(self, parts: list[str], size: int, fields: dict[str, Any]) -> Incoming:
        with _named_errors(parts):
            folder = self._folder_of(parts)
            try:
                self._file = os.open(parts[-1], _CREATE, mode_of(fields), dir_fd=folder)
            finally:
                os.close(folder)
        self._names.append((parts, False))
        mtime_ns = fields.get("mtime_ns")
        self._mtime_ns = mtime_ns if type(mtime_ns) is int and 0 <= mtime_ns < _MAX_TIME_NS else None
        return Incoming("/".join(parts), size, self._write)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        with _named_errors(self._names[-1][0]):
            while view:
                view = view[os.write(self._file, view) :]

    def _end_file(self) -> None:
        if self._mtime_ns is not None:
            os.utime(self._file, ns=(self._mtime_ns, self._mtime_ns))
        os.close(self._file)
        self._file = -1

    def _make_folder(self, parts: list[str], mode: int) -> None:
        with _named_errors(parts):
            folder = self._folder_of(parts)
            try:
                os.mkdir(parts[-1], mode | _PRIVATE, dir_fd=folder)
            finally:
                os.close(folder)
        self._names.append((parts, True))

    def _folder_of(self, parts: list[str]) -> int:
        """The staged folder that a file goes into. Folders that a pattern does not mean do not come by themselves."""
        try:
            return open_folder(self._tree, parts[:-1])
        except FileNotFoundError:
            self._count(0, parts[:-1])
            self._make_folder(parts[:-1], _FOLDER_MODE)
            return open_folder(self._tree, parts[:-1])

    def _move_all(self) -> list[str]:
        """The target is new: everything appears at once."""
        above = self._parts[: len(self._parts) - len(self._missing)]
        made: list[list[str]] = []
        folder = os.dup(self._base)
        try:
            for part in self._missing[:-1]:
                with _named_errors([*above, part]):
                    os.mkdir(part, dir_fd=folder)
                    below = open_folder(folder, [part])
                os.close(folder)
                folder = below
                above.append(part)
                made.append([*above])
            with _named_errors(self._parts):
                os.rename(f"{self._staging_name}/tree", self._missing[-1], src_dir_fd=self._base, dst_dir_fd=folder)
        except BaseException:
            for parts in reversed(made):
                with contextlib.suppress(OSError):
                    os.rmdir("/".join(parts[len(self._parts) - len(self._missing) :]), dir_fd=self._base)
            raise
        finally:
            os.close(folder)
        made.append(self._parts)
        made += [[*self._parts, *parts] for parts, is_folder in self._names if is_folder]
        return ["/".join(parts) for parts in made]

    def _merge(self) -> list[str]:
        """The target is there: file by file, after a look whether anything is in the way."""
        there = [self._is_there(parts, is_folder) for parts, is_folder in self._names]
        made = []
        for (parts, is_folder), exists in zip(self._names, there, strict=True):
            with _named_errors(parts):
                folder = open_folder(self._base, parts[:-1])
                try:
                    if not is_folder:
                        self._move_file(parts, folder)
                    elif not exists:
                        os.mkdir(parts[-1], self._mode_of(parts), dir_fd=folder)
                        made.append("/".join([*self._parts, *parts]))
                finally:
                    os.close(folder)
        return made

    def _mode_of(self, parts: list[str]) -> int:
        return stat.S_IMODE(os.stat("/".join(parts), dir_fd=self._tree, follow_symlinks=False).st_mode)

    def _is_there(self, parts: list[str], is_folder: bool) -> bool:
        """Raises TreeError if what is there cannot make room."""
        with _named_errors(parts):
            try:
                folder = open_folder(self._base, parts[:-1])
            except FileNotFoundError:
                return False
            try:
                mode = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode
            except FileNotFoundError:
                return False
            finally:
                os.close(folder)
        if is_folder:
            if not stat.S_ISDIR(mode):
                raise TreeError("is in the way: it is there, and no folder", "/".join(parts))
        elif not stat.S_ISREG(mode):
            raise TreeError("is in the way: it is there, and no file", "/".join(parts))
        elif not self._overwrite:
            raise TreeError("is there already", "/".join(parts))
        return True

    def _move_file(self, parts: list[str], folder: int) -> None:
        source = open_folder(self._tree, parts[:-1])
        try:
            if self._overwrite:
                os.rename(parts[-1], parts[-1], src_dir_fd=source, dst_dir_fd=folder)
            else:  # unlike rename(), link() never replaces what has come in between
                os.link(parts[-1], parts[-1], src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(source)


def _deepest(anchor: int, parts: Sequence[str]) -> tuple[int, list[str]]:
    """The deepest folder on the way that is there, and what is missing below it."""
    fd = open_folder(anchor, ())
    for place, part in enumerate(parts):
        try:
            with _named_errors(parts[: place + 1]):
                below = open_folder(fd, [part])
        except TreeError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return fd, list(parts[place:])
            os.close(fd)
            raise
        os.close(fd)
        fd = below
    return fd, []


class _named_errors(contextlib.AbstractContextManager[None]):
    """An OSError in the block becomes a TreeError with the name of the file."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._name = "/".join(parts)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileExistsError):
            raise TreeError("is there already, or was named twice", self._name) from error
        if isinstance(error, OSError):
            raise TreeError(reason_of(error), self._name) from error
