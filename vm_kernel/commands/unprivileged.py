"""Run a function in a child process that is never root, for checks that start QEMU or open libvirt.

A forked child and not ``python -m``: the unprivileged user may be unable to read this Python environment, and
libvirt's embedded driver can be opened only once in the life of a process.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vm_kernel.errors import HostError, VMKernelError, from_name
from vm_kernel.pool import privileges

TIMEOUT_S = 60.0


def run_unprivileged(function: Callable[[Path], Any], user: str) -> Any:
    """Call ``function(folder)`` with a temporary folder. As root, the child becomes ``user`` first.

    Import what the function needs before: ``user`` may be unable to read it.

    Returns what the function returns, as JSON gives it back. Called by the doctor. Raises the function's error, or
    HostError if the child dies or takes a minute.
    """
    folder = Path(tempfile.mkdtemp(prefix="vmk-", dir="/tmp"))
    try:
        said = _in_child(function, folder, user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not said:
        raise HostError("The check ended without an answer.", "Run it again; if it stays so, please report it.")
    outcome = json.loads(said)
    if "error" in outcome:
        raise from_name(**outcome["error"])
    return outcome["result"]


def _in_child(function: Callable[[Path], Any], folder: Path, user: str) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(function, folder, user, writing)
    os.close(writing)
    try:
        return _read(reading)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _child(function: Callable[[Path], Any], folder: Path, user: str, writing: int) -> None:
    """Never returns: the child of a fork must not run its parent's clean-up."""
    try:
        os.setsid()
        # as the pool service does it; what it makes for a home of the service goes into the temporary folder
        os.environ["VM_KERNEL_HOME"] = str(folder)
        privileges.drop(user)
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
