"""A VM's RAM as a sealed memfd, and its copy on disk. Holes stay holes: most of a VM's RAM was never touched."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import time
from pathlib import Path

_CHUNK = 256 << 10
_SEAL_TIMEOUT_S = 5.0
_ZEROS = bytes(_CHUNK)


def new_memfd(size: int) -> int:
    """An empty memory file of ``size`` bytes (a multiple of 1 MiB) that can be sealed."""
    memfd = os.memfd_create("vm-kernel-golden", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, size)
    return memfd


def seal(memfd: int) -> None:
    """Nobody, we included, can change it any more. Raises OSError (EBUSY) if somebody goes on mapping it writable.

    On a busy machine it can be that the kernel itself still has its hands on some pages: that is waited for.
    """
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    deadline = time.monotonic() + _SEAL_TIMEOUT_S
    while True:
        try:
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, seals)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def save(memfd: int, target: Path) -> str:
    """Write the RAM to a sparse file; returns a digest of what load() must find there. Raises OSError if full."""
    size = os.fstat(memfd).st_size
    digest = hashlib.sha256()
    with target.open("xb") as file, mmap.mmap(memfd, size, prot=mmap.PROT_READ) as ram:
        os.truncate(file.fileno(), size)
        for offset in range(0, size, _CHUNK):
            chunk = ram[offset : offset + _CHUNK]
            if chunk != _ZEROS:
                digest.update(offset.to_bytes(8, "little") + chunk)
                file.seek(offset)
                file.write(chunk)
    return digest.hexdigest()


def load(source: Path, memfd: int) -> str:
    """Fill an empty memfd from a file written by save(), and return the digest of what was there.

    Raises ValueError if the file has not the memfd's size.
    """
    size = os.fstat(memfd).st_size
    if source.stat().st_size != size:
        raise ValueError(f"{source} has {source.stat().st_size} bytes instead of {size}")
    digest = hashlib.sha256()
    with source.open("rb") as file:
        for offset in range(0, size, _CHUNK):
            chunk = file.read(_CHUNK)
            if chunk != _ZEROS:
                digest.update(offset.to_bytes(8, "little") + chunk)
                os.pwrite(memfd, chunk, offset)
    return digest.hexdigest()
