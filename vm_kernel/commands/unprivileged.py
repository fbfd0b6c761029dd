"""Run a function in a child process that is never root, for checks that start QEMU or open libvirt.

A forked child and not ``python -m``: the unprivileged user may be unable to read this Python environment, and
libvirt's embedded driver can be opened only once in the life of a process.
"""

from __future__ import annotations

import json
import os
import pwd
import select
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vm_kernel.errors import HostError, VMKernelError, from_name

TIMEOUT_S = 60.0


def run_unprivileged(function: Callable[[Path], Any], user: str) -> Any:
    """Call ``function(folder)`` with a temporary folder. As root, the child becomes ``user`` first.

    Returns what the function returns, as JSON gives it back. Called by the doctor. Raises the function's error, or
    HostError if the child dies or takes a minute.
    """
    folder = Path(tempfile.mkdtemp(prefix="vmk-", dir="/tmp"))
    try:
        owner = _owner(user) if os.geteuid() == 0 else None
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        said = _in_child(function, folder, owner)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not said:
        raise HostError("The check ended without an answer.", "Run it again; if it stays so, please report it.")
    outcome = json.loads(said)
    if "error" in outcome:
        raise from_name(**outcome["error"])
    return outcome["result"]


def _owner(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise HostError(
            f"There is no user {user!r}, whom the pool service becomes when root starts it.",
            f"Create it: useradd --system --home-dir /var/lib/vm-kernel --shell /usr/sbin/nologin {user}",
        ) from None


def _in_child(function: Callable[[Path], Any], folder: Path, owner: pwd.struct_passwd | None) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(function, folder, owner, writing)
    os.close(writing)
    try:
        return _read(reading)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _child(function: Callable[[Path], Any], folder: Path, owner: pwd.struct_passwd | None, writing: int) -> None:
    """Never returns: the child of a fork must not run its parent's clean-up."""
    try:
        os.setsid()
        if owner is not None:
            os.initgroups(owner.pw_name, owner.pw_gid)
            os.setgid(owner.pw_gid)
            os.setuid(owner.pw_uid)
        outcome: dict[str, Any] = {"result": function(folder)}
    except VMKernelError as error:
        outcome = {"error": {"name": type(error).__name__, "message": error.message, "hint": error.hint}}
    except BaseException as error:
        outcome = {"error": {"name": "HostError", "message": f"{type(error).__name__}: {error}"}}
    try:
        os.write(writing, json.dumps(outcome).encode())
    finally:
        os._exit(0)


def _read(fd: int) -> bytes:
    said = b""
    while select.select([fd], [], [], TIMEOUT_S)[0]:
        data = os.read(fd, 65536)
        if not data:
            return said
        said += data
    return b""
