"""``FilesystemShare``: files between the host and a sandbox's VM. How they travel is in ``vm_kernel.guest.files``.

Paths in the VM are relative to the folder where its code begins (the user's home), or absolute; ``..`` is refused, and
no symbolic link is followed. Neither end believes the other: whatever the VM says, nothing is written on the host
outside the folder that was named, and a file appears there when all of it has arrived, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from guest_agent.frames import Kind
from guest_agent.names import Limits, Patterns, TreeError
from guest_agent.tree_writer import TreeWriter
from vm_kernel.errors import FilesystemError
from vm_kernel.guest.asyncio_stream import VsockProtocol
from vm_kernel.guest.file_channel import FileChannel, Progress, host_errors
from vm_kernel.guest.files import FileEntry, FileRequest, Put, Transfer

#: bytes and entries of one transfer unless told otherwise
MAX_BYTES = 2 * 1024**3
MAX_ENTRIES = 100_000
#: bytes that read_file() takes into memory unless told otherwise
MAX_READ_BYTES = 256 * 1024**2

T = TypeVar("T")


class FilesystemShare:
    """Copies files to and from the VM of one sandbox, also while code runs in it: ``box.files``.

    One transfer at a time; further calls wait for their turn. ``progress`` is called on the event loop with the bytes
    that have been copied and the bytes there are in all. Cancelling gives a transfer up and leaves nothing half done.

    All methods raise FilesystemError, which has the ``path``; VMDied if the VM ends; SandboxClosed if there is none.

    max_bytes, max_entries: how much one transfer may carry.
    """

    def __init__(
        self,
        channel: Callable[[], FileChannel],
        *,
        max_bytes: int = MAX_BYTES,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        self.limits = Limits(max_bytes, max_entries)
        self._channel = channel
        self._lock = asyncio.Lock()
        self._put_paths: dict[str, None] = {}
        self._made_folders: dict[str, None] = {}

    async def write_file(
        self, path: str, data: bytes | str | Path, *, mode: int = 0o644, progress: Progress | None = None
    ) -> None:
        """Make the file ``path`` in the VM, or replace it. data: its content (str: as UTF-8), or a file of the host.

        mode: permissions of a file made from bytes or str; one from the host keeps its own. Folders are made as needed.
        """
        if isinstance(data, Path):
            source = _real(data)
            await self._put(lambda request: _put_file(request, source, path), progress)
        else:
            content = _content(data)
            await self._put(lambda request: request.put_bytes(content, path, mode), progress)

    async def read_file(self, path: str, *, max_bytes: int = MAX_READ_BYTES, progress: Progress | None = None) -> bytes:
        """The content of a file of the VM. A larger one than ``max_bytes`` is an error."""
        limits = self.limits._replace(max_bytes=max_bytes)
        return await self._run(lambda request: request.read(path), progress, limits)

    async def put_tree(
        self,
        host_dir: str | Path,
        guest_dir: str = ".",
        *,
        pattern: str | Sequence[str] = "**",
        hidden: bool = False,
        progress: Progress | None = None,
    ) -> Transfer:
        """Copy the files below a folder of the host into a folder of the VM, which is made if need be.

        pattern: which of them, see get_tree(). hidden: also names that begin with a dot. Files that are there are
        replaced. Symbolic links, devices and sockets are left out; the result lists them.
        """
        root, patterns = _real(Path(host_dir)), _patterns(pattern, hidden)
        return (await self._put(lambda request: _put_tree(request, root, guest_dir, patterns), progress)).transfer

    async def get_tree(
        self,
        guest_dir: str,
        host_dir: str | Path,
        *,
        pattern: str | Sequence[str] = "**",
        hidden: bool = False,
        overwrite: bool = True,
        progress: Progress | None = None,
    ) -> Transfer:
        """Copy the files below a folder of the VM into a folder of the host, which is made if need be.

        pattern: one or more of them, as a shell would write it, relative to ``guest_dir``; ``**`` is any number of
        folders, and a folder stands for all that is in it. hidden: also names that begin with a dot. overwrite: replace
        files that are there; otherwise they are an error, and nothing is copied. Links are left out, as in put_tree().
        """
        target, patterns = _real(Path(host_dir)), _patterns(pattern, hidden)
        return await self._run(lambda request: _get_tree(request, guest_dir, target, patterns, overwrite), progress)

    async def cleanup(self) -> int:
        """Remove in the VM what this share has put there: its files, and folders that it made and that are empty now.

        Returns how many there were. After a restart there is nothing to remove.
        """
        folders = sorted(self._made_folders, key=lambda path: path.count("/"), reverse=True)
        paths = [*self._put_paths, *folders]
        self.forget()
        return await self._run(lambda request: request.remove(paths)) if paths else 0

    def forget(self) -> None:
        """The VM has gone, and with it what was put there. Called by the sandbox."""
        self._put_paths.clear()
        self._made_folders.clear()

    def paused(self) -> asyncio.Lock:
        """``async with``: no file is on its way meanwhile. For the sandbox, whose state is being saved or replaced."""
        return self._lock

    async def list(self, path: str = ".") -> list[FileEntry]:
        """What is in a folder of the VM, by name."""
        return await self._run(lambda request: request.entries(path))

    async def _put(self, work: Callable[[FileRequest], Put], progress: Progress | None) -> Put:
        put = await self._run(work, progress)
        self._put_paths |= dict.fromkeys(put.paths)
        self._made_folders |= dict.fromkeys(put.made)
        return put

    async def _run(
        self, work: Callable[[FileRequest], T], progress: Progress | None = None, limits: Limits | None = None
    ) -> T:
        """Do it in a thread. Who is cancelled waits until the thread has tidied up."""
        loop = asyncio.get_running_loop()

        def tell(done: int, total: int) -> None:
            if progress is not None:
                loop.call_soon_threadsafe(progress, done, total)

        async with self._lock:
            request = FileRequest(self._channel(), limits or self.limits, tell)
            working = loop.run_in_executor(None, work, request)
            try:
                return await asyncio.shield(working)
            except asyncio.CancelledError:
                request.cancel()
                await asyncio.wait([working])
                if not working.cancelled():
                    working.exception()
                raise


class _Caller(Protocol):
    def __call__(self, work: Callable[[FilesystemShare], Coroutine[Any, Any, T]]) -> T: ...


class SyncFilesystemShare:
    """The same for ``SyncSandbox``: methods block; arguments, results and errors are FilesystemShare's.

    ``progress`` is called in the sandbox's own thread.
    """

    def __init__(self, call: _Caller) -> None:
        self._call = call

    def write_file(self, path: str, data: bytes | str | Path, **options: Any) -> None:
        """See FilesystemShare.write_file()."""
        self._call(lambda files: files.write_file(path, data, **options))

    def read_file(self, path: str, **options: Any) -> bytes:
        """See FilesystemShare.read_file()."""
        return self._call(lambda files: files.read_file(path, **options))

    def put_tree(self, host_dir: str | Path, guest_dir: str = ".", **options: Any) -> Transfer:
        """See FilesystemShare.put_tree()."""
        return self._call(lambda files: files.put_tree(host_dir, guest_dir, **options))

    def get_tree(self, guest_dir: str, host_dir: str | Path, **options: Any) -> Transfer:
        """See FilesystemShare.get_tree()."""
        return self._call(lambda files: files.get_tree(guest_dir, host_dir, **options))

    def cleanup(self) -> int:
        """See FilesystemShare.cleanup()."""
        return self._call(lambda files: files.cleanup())

    def list(self, path: str = ".") -> list[FileEntry]:
        """See FilesystemShare.list()."""
        return self._call(lambda files: files.list(path))


def open_channel(stream: VsockProtocol, note: Callable[[str, dict[str, Any]], object]) -> FileChannel:
    """File transfers over a stream of the running event loop. ``note`` is called on it, for each transfer."""
    loop = asyncio.get_running_loop()

    def later(function: Callable[..., object]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            with contextlib.suppress(RuntimeError):  # a loop that has ended has taken its VM with it
                loop.call_soon_threadsafe(function, *arguments)

        return call

    return FileChannel(later(partial(stream.send_parts, Kind.FILES)), later(partial(note, "files")))


# ---- in the thread: paths of the host, which the program that calls us vouches for


def _put_file(request: FileRequest, source: Path, target: str) -> Put:
    with host_errors(str(source)):
        folder = os.open(source.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return request.put_file(folder, source.name, target)
    finally:
        os.close(folder)


def _put_tree(request: FileRequest, source: Path, target: str, patterns: Patterns) -> Put:
    with host_errors(str(source)):
        root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return request.put_tree(root, target, patterns)
    finally:
        os.close(root)


def _get_tree(request: FileRequest, source: str, target: Path, patterns: Patterns, overwrite: bool) -> Transfer:
    with host_errors(str(target)):
        anchor = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            writer = TreeWriter(anchor, target.parts[1:], request.limits, patterns, overwrite)
        finally:
            os.close(anchor)
    return request.get_tree(source, writer, patterns)


def _real(path: Path) -> Path:
    """Absolute, with the links in it resolved: the caller may name a folder by whatever way leads there."""
    with host_errors(str(path)):
        return path.resolve()


def _content(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)


def _patterns(pattern: str | Sequence[str], hidden: bool) -> Patterns:
    try:
        return Patterns([pattern] if isinstance(pattern, str) else pattern, hidden)
    except TreeError as error:
        raise FilesystemError(f"{pattern}: {error.reason}.", path=str(pattern)) from None
