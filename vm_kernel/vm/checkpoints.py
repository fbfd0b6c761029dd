"""Checkpoints: the live state of a VM as a delta to its golden snapshot, saved while the VM goes on, and brought back.

A clone maps the golden RAM image privately. What it has changed since are the pages of that mapping that are its own;
Linux tells which (``/proc/<pid>/pagemap``, see Documentation/admin-guide/mm/pagemap.rst in the kernel's source), and
they can be read from outside (``/proc/<pid>/mem``). In a VM that shares no memory all pages are its own, so each is
compared with the image. Together with the state of the devices they are everything: the disk is read-only. To bring a
checkpoint back, its pages are written over the same golden image in a QEMU that waits for its state. Not here: whose
checkpoint it is and how long it is kept (the pool), what the guest is told (``guest``).
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from vm_kernel.errors import CheckpointError, VMError
from vm_kernel.vm.golden import GoldenSnapshot
from vm_kernel.vm.machine import Machine, PreparedMachine
from vm_kernel.vm.memory import available_mib

_PAGE = mmap.PAGESIZE
_FORMAT = 1
#: bits of the last byte of a pagemap entry (little endian): present 63, swapped 62, file-mapped or shared 61
_PRESENT, _SWAPPED, _FILE = 0x80, 0x40, 0x20
#: last byte of an entry to b"\1" if the page is the process's own, else b"\0"
_OWN = bytes(int(bool(byte & (_PRESENT | _SWAPPED)) and not byte & _FILE) for byte in range(256))
#: what a session may change between two looks at it, in bytes
_SLACK = 4 << 20
_RUN = re.compile(rb"\x01+")
_ENDED = "The virtual machine has ended."


class Run(NamedTuple):
    """Pages of guest memory in a row: where they begin in it and how many bytes they are."""

    offset: int
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """A saved checkpoint. ``folder`` has its files, which nobody changes any more.

    golden_key, build_id: of the golden snapshot that it is a delta of. size: bytes of changed pages.
    pause_ms: how long the VM stood still. created_at: timezone-aware.
    """

    folder: Path
    golden_key: str
    build_id: str
    size: int
    pause_ms: float
    created_at: datetime

    @property
    def disk_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def delete(self) -> None:
        """Remove its files. Idempotent."""
        shutil.rmtree(self.folder, ignore_errors=True)


def save(machine: Machine, golden: GoldenSnapshot, folder: Path, limit: int) -> Checkpoint:
    """Save the live state of ``machine``, a clone of ``golden``, into the new folder ``folder``. It then runs on.

    Called by the pool, when the guest's agent has fallen silent. ``limit``: bytes of changed pages at the most. Raises
    CheckpointError if there are more or if there is no room; nothing is left then, and the VM runs on.
    """
    folder.mkdir(mode=0o700, parents=True)
    try:
        with _clear_errors(folder):
            # memory that is there before it is needed, and a file that is written afterwards: the VM waits for neither
            expected = _size(_own_runs(machine.pid, golden))
            _check_size(expected, limit)
            with _buffer(expected + _SLACK) as buffer:
                with machine.paused() as stopped:
                    machine.save_devices(folder / "state")
                    runs = _own_runs(machine.pid, golden)
                    _check_size(_size(runs), limit)
                    pages = _copy_out(machine.pid, golden, runs, buffer)
                if not golden.spec.share_memory:
                    runs, pages = _changed(golden, runs, pages)
                _write(folder, runs, pages)
            return _finish(golden, folder, runs, stopped.ms)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def load(folder: Path, *, check: bool) -> Checkpoint:
    """The checkpoint in ``folder``. ``check``: its content, too. Raises CheckpointError if it is damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != _FORMAT:
            raise CheckpointError("it was saved by another version")
        if (folder / "pages").stat().st_size != manifest["size"]:
            raise CheckpointError("its memory is incomplete")
        if check and _digest(folder) != manifest["sha256"]:
            raise CheckpointError("it is damaged")
        return Checkpoint(
            folder=folder,
            golden_key=str(manifest["golden_key"]),
            build_id=str(manifest["build_id"]),
            size=int(manifest["size"]),
            pause_ms=float(manifest["pause_ms"]),
            created_at=datetime.fromisoformat(manifest["created_at"]),
        )
    except CheckpointError as error:
        raise _unusable(folder, error.message) from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _unusable(folder, f"{type(error).__name__}: {error}") from None


def restore(shell: PreparedMachine, golden: GoldenSnapshot, checkpoint: Checkpoint) -> Machine:
    """Make a running VM of a QEMU that waits (``machine.prepare``), in the state of ``checkpoint``.

    Called by the pool. Raises CloneError, CheckpointError; the shell is destroyed then. The guest's agent waits for a
    new host connection.
    """
    try:
        if (checkpoint.golden_key, checkpoint.build_id) != (golden.key, golden.build_id):
            raise _unusable(checkpoint.folder, "it belongs to another golden snapshot")
        with _clear_errors(checkpoint.folder):
            runs = read_runs(checkpoint.folder / "runs")
            state = (checkpoint.folder / "state").read_bytes()
            _copy_in(shell.pid, golden, runs, checkpoint.folder / "pages")
    except BaseException:
        shell.destroy()
        raise
    return shell.restore(state)


def _unusable(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"Checkpoint {folder.name!r} cannot be used: {reason}.", "Delete it, and save a new one.")


# ---- the VM's memory, from outside


class _Piece(NamedTuple):
    """A part of QEMU's mapping of the golden image: where it is in QEMU's memory and in the image."""

    address: int
    size: int
    offset: int


def _mapping(pid: int, golden: GoldenSnapshot) -> list[_Piece]:
    """QEMU's mapping of guest memory, which Linux may show in several pieces."""
    pieces = []
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    if not lines:  # a zombie's
        raise VMError(_ENDED)
    for line in lines:
        span, access, offset, _, number, *_ = line.split(maxsplit=5)
        if int(number) == golden.ram_inode and access.startswith("rw") and access.endswith("p"):
            begin, end = (int(address, 16) for address in span.split("-"))
            pieces.append(_Piece(begin, end - begin, int(offset, 16)))
    if sum(piece.size for piece in pieces) != golden.spec.memory_mib << 20:
        raise CheckpointError("The memory of the virtual machine is not where it is expected.", "Please report this.")
    return pieces


def _own_runs(pid: int, golden: GoldenSnapshot) -> list[Run]:
    """What of guest memory the VM has for itself."""
    runs = []
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for piece in _mapping(pid, golden):
            entries = os.pread(pagemap.fileno(), 8 * piece.size // _PAGE, 8 * piece.address // _PAGE)
            if len(entries) != 8 * piece.size // _PAGE:
                raise VMError(_ENDED)
            for match in _RUN.finditer(entries[7::8].translate(_OWN)):
                runs.append(Run(piece.offset + match.start() * _PAGE, (match.end() - match.start()) * _PAGE))
    return runs


def _transfers(pid: int, golden: GoldenSnapshot, runs: list[Run]) -> Iterator[tuple[int, int]]:
    """Address in QEMU's memory and size of each run."""
    pieces = _mapping(pid, golden)
    for run in runs:
        for piece in pieces:
            if piece.offset <= run.offset and run.offset + run.size <= piece.offset + piece.size:
                yield piece.address + run.offset - piece.offset, run.size
                break
        else:
            raise CheckpointError("A run of pages is outside the memory of the virtual machine.")


def _copy_out(pid: int, golden: GoldenSnapshot, runs: list[Run], buffer: mmap.mmap) -> memoryview:
    """The content of the runs, one behind the other; in ``buffer``, which grows if need be."""
    if _size(runs) > len(buffer):
        buffer.resize(_size(runs))
    pages = memoryview(buffer)[: _size(runs)]
    try:
        _move(pid, golden, runs, pages, os.O_RDONLY, os.preadv)
    except BaseException:
        pages.release()
        raise
    return pages


def _changed(golden: GoldenSnapshot, runs: list[Run], pages: memoryview) -> tuple[list[Run], memoryview]:
    """What of the VM's own pages differs from the golden image: a VM that shares none with it has all of them."""
    changed: list[Run] = []
    done = end = 0
    with pages, mmap.mmap(golden.memfd, golden.spec.memory_mib << 20, prot=mmap.PROT_READ) as image:
        for run in runs:
            for offset in range(run.offset, run.offset + run.size, _PAGE):
                page = bytes(pages[done : done + _PAGE])
                done += _PAGE
                if page == image[offset : offset + _PAGE]:
                    continue
                pages[end : end + _PAGE] = page
                end += _PAGE
                if changed and sum(changed[-1]) == offset:
                    changed[-1] = Run(changed[-1].offset, changed[-1].size + _PAGE)
                else:
                    changed.append(Run(offset, _PAGE))
        return changed, pages[:end]


def _copy_in(pid: int, golden: GoldenSnapshot, runs: list[Run], source: Path) -> None:
    """Write the runs into the VM's memory."""
    if _size(runs) != source.stat().st_size:
        raise CheckpointError("Its memory is incomplete.")
    if runs:
        with source.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
            view = memoryview(pages)
            try:
                _move(pid, golden, runs, view, os.O_WRONLY, os.pwritev)
            finally:
                view.release()


def _move(
    pid: int,
    golden: GoldenSnapshot,
    runs: list[Run],
    pages: memoryview,
    access: int,
    move: Callable[[int, list[Any], int], int],
) -> None:
    memory = os.open(f"/proc/{pid}/mem", access | os.O_CLOEXEC)
    try:
        done = 0
        for address, length in _transfers(pid, golden, runs):
            while length:
                moved = move(memory, [pages[done : done + length]], address)
                if moved <= 0:
                    raise VMError(_ENDED)
                done, address, length = done + moved, address + moved, length - moved
    finally:
        os.close(memory)


@contextmanager
def _buffer(size: int) -> Iterator[mmap.mmap]:
    """Memory that is given back at once; what Python's allocator gets it may keep."""
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    try:
        yield buffer
    finally:
        buffer.close()


def _size(runs: list[Run]) -> int:
    return sum(run.size for run in runs)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise CheckpointError(
            f"The session has changed {size >> 20} MiB; {limit >> 20} MiB are left for checkpoints.",
            "Delete checkpoints (`%checkpoint --delete NAME`), or raise c.PoolConfig.checkpoint_disk_mib.",
        )
    if size >> 20 >= available_mib():
        raise CheckpointError(
            f"The session has changed {size >> 20} MiB, which the host has not free to copy them.", "Free some memory."
        )


# ---- files


def _write(folder: Path, runs: list[Run], pages: memoryview) -> None:
    with pages, (folder / "pages").open("xb") as file:
        file.write(pages)
    (folder / "runs").write_text(json.dumps(runs))


def _finish(golden: GoldenSnapshot, folder: Path, runs: list[Run], pause_ms: float) -> Checkpoint:
    manifest = {
        "format": _FORMAT,
        "golden_key": golden.key,
        "build_id": golden.build_id,
        "size": _size(runs),
        "pause_ms": round(pause_ms, 2),
        "created_at": datetime.now(UTC).isoformat(),
        "sha256": _digest(folder),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load(folder, check=False)


def read_runs(path: Path) -> list[Run]:
    """Raises ValueError if they are none: pages in a row, in order."""
    end, runs = 0, []
    try:
        for offset, size in json.loads(path.read_text()):
            if type(offset) is not int or type(size) is not int or offset < end or size <= 0 or (offset | size) % _PAGE:
                raise ValueError("runs of pages that are none")
            end = offset + size
            runs.append(Run(offset, size))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"runs of pages that are none: {error}") from None
    return runs


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("runs", "state", "pages"):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointError(
                f"There is no room for checkpoints in {folder.parent}: {error.strerror}.", "Make room there."
            ) from error
        raise CheckpointError(f"The checkpoint failed: {error}.", "The session goes on as it was.") from error
    except (ValueError, VMError) as error:
        if isinstance(error, CheckpointError):
            raise
        message = error.message if isinstance(error, VMError) else str(error)
        raise CheckpointError(f"The checkpoint failed: {message}", "The session goes on as it was.") from error
