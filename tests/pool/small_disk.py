"""A home on a file system of a few megabytes, for a forked process and what it starts; it goes with them.

As an ordinary user this takes a user namespace, as the image builder does; root needs only a mount namespace.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18


def mount(folder: Path, mib: int) -> None:
    """Put an empty file system of that size on ``folder``, for this process and its children alone. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    _check(libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0)))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    _check(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={mib}m,mode=0755".encode()))


def fill(file: Path) -> None:
    """Write it until no byte fits any more."""
    with file.open("wb", buffering=0) as target:
        for size in (1 << 20, 4096, 1):
            try:
                while target.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
