"""Runs a part of a test in a process of its own, as an ordinary user.

libvirt's embedded driver opens once in the life of a process, does not run as root, and some tests kill its process.
"""

from __future__ import annotations

import os
import pickle
import pwd
import select
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vm_kernel.config import PoolConfig


class Child:
    """A forked process that runs ``function(*arguments)``. Its result or failure is fetched with :meth:`result`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, as_root: bool = False) -> None:
        """as_root: if this process is root's, so is the child."""
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reader)
            _run(writer, function, arguments, as_root)
        os.close(writer)

    def result(self, timeout_s: float = 120.0) -> Any:
        """What the function returned. Fails with the child's traceback if it raised."""
        try:
            ok, value = pickle.loads(_read(self._reader, timeout_s))
        except EOFError:
            raise AssertionError("the child ended without a result") from None
        finally:
            self.kill()
        assert ok, value
        return value

    def kill(self) -> None:
        """kill -9."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run it and return what it returns."""
    return Child(function, *arguments).result()


def _run(writer: int, function: Callable[..., Any], arguments: tuple[Any, ...], as_root: bool) -> None:
    """Never returns: the child must not go on with pytest."""
    try:
        os.setsid()
        if not as_root:
            _drop_root()
        outcome = (True, function(*arguments))
    except BaseException:
        outcome = (False, "in the child process:\n" + traceback.format_exc())
    try:
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(outcome, pipe)
    finally:
        os._exit(0)


def _drop_root() -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam(PoolConfig().user)
        os.setgroups([])
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)


def _read(fd: int, timeout_s: float) -> bytes:
    """Everything that the child says; it may have said all before its own threads end."""
    said, deadline = b"", time.monotonic() + timeout_s
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return said
        said += chunk
    raise AssertionError(f"the child took more than {timeout_s} s")
