"""A QEMU process that libvirt started for us: is it alive, kill it, reap it.

libvirt detaches its QEMUs, so they become orphans. This process adopts them (it is a "child subreaper"), because where
orphans are reaped slowly libvirt waits for a zombie to go, up to 40 s. Only QEMUs are ever reaped here, by their
process id: to wait for *any* child would take libvirt's helpers away from it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_THP_DISABLE = 41


def adopt_orphans() -> None:
    """Prepare this process to be the parent of QEMUs. Called once, before libvirt is opened."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A process that has dropped root is not dumpable, and then its /proc/<pid>/fd, through which QEMU maps the golden
    # RAM, is closed to its own user.
    libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    # QEMU inherits it. Huge pages round up a VM's own memory by some 3 MB, and bring it no speed that we could measure.
    libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class QemuProcess:
    """Handle on one QEMU, by pidfd: a process id that was used anew is never mistaken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None
        self._guard = threading.Lock()

    def fileno(self) -> int:
        """A descriptor that becomes readable when the process ends."""
        return self._pidfd

    @property
    def alive(self) -> bool:
        return self._pidfd >= 0 and not self._ended(0)

    @property
    def stopped(self) -> bool:
        """Whether somebody has stopped it (SIGSTOP, a debugger): libvirt would wait for its answer for ever."""
        return _state(self.pid) in ("T", "t")

    @property
    def exit_status(self) -> int | None:
        """Of a process that has ended: its status, negative if a signal killed it. None if it runs or is not ours."""
        self.collect()
        return self._status

    def collect(self) -> None:
        """If it has ended, take its zombie away, for which libvirt would wait, and remember its status. Never waits."""
        with self._guard, suppress(OSError):
            if self._pidfd >= 0 and self._status is None:
                ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
                if ended is not None:
                    self._status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def kill(self, timeout_s: float = 10.0) -> bool:
        """SIGKILL, wait, reap. True if it is gone. A process that is not our child is left for its parent to reap."""
        if self._pidfd < 0:
            return True
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        ended = self._ended(timeout_s)
        self.collect()
        return ended

    def close(self) -> None:
        """Give the pidfd back. Idempotent."""
        with self._guard:
            pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def _ended(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))


class Reaper:
    """Takes the zombies of QEMUs away as they end, whatever all other threads are doing.

    When a QEMU ends in the middle of a question, libvirt keeps the one who asked waiting until the zombie has gone,
    up to 40 s; and that may be the very thread that would have taken it away.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._qemus: dict[int, QemuProcess] = {}
        self._stop, stop = os.pipe()
        self._stop_write = stop
        self._epoll.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="qemu-reaper", daemon=True)
        self._thread.start()

    def add(self, qemu: QemuProcess) -> None:
        """From now on, until it ends or remove() is called."""
        self._qemus[qemu.fileno()] = qemu
        self._epoll.register(qemu.fileno(), select.EPOLLIN | select.EPOLLONESHOT)

    def remove(self, qemu: QemuProcess) -> None:
        """Before it is closed. Idempotent."""
        if self._qemus.pop(qemu.fileno(), None) is not None:
            self._epoll.unregister(qemu.fileno())

    def close(self) -> None:
        """End the thread. Idempotent."""
        if self._stop_write >= 0:
            os.close(self._stop_write)
            self._stop_write = -1
            self._thread.join()
            os.close(self._stop)
            self._epoll.close()

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._stop:
                    return
                qemu = self._qemus.get(fd)
                if qemu is not None:
                    qemu.collect()


def reap(pid: int) -> None:
    """Take the zombie of ``pid`` away if it is one and ours; never waits."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def qemus_of(root: Path, *, any_user: bool = False) -> Iterator[int]:
    """Process ids of this user's (or anybody's) QEMUs that were started below libvirt's root folder ``root``."""
    # Every QEMU of libvirt is told the path of its key file.
    marks = [f'"file":"{root}/lib/'.encode(), f"unix:{root}/lib/".encode()]
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if not any_user and entry.stat().st_uid != os.geteuid():
                continue
            command = (entry / "cmdline").read_bytes()
            if b"qemu" in command.split(b"\0", 1)[0] and any(mark in command for mark in marks):
                yield int(entry.name)


def qemu_of_guest(name: str) -> int:
    """Process id of the QEMU of a domain, whoever started it. Raises ProcessLookupError."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"guest={name},".encode() in (entry / "cmdline").read_bytes():
                return int(entry.name)
    raise ProcessLookupError(f"no QEMU of {name}")


def kill_all(pids: list[int], timeout_s: float = 10.0) -> None:
    """SIGKILL these processes and wait until they are gone (reaped by us or by whoever their parent is)."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout_s
    waiting = set(pids)
    while waiting and time.monotonic() < deadline:
        for pid in list(waiting):
            reap(pid)
            if _gone(pid):
                waiting.discard(pid)
        time.sleep(0.005)


def _gone(pid: int) -> bool:
    return _state(pid) in ("", "Z", "X")


def _state(pid: int) -> str:
    """The letter of /proc/<pid>/stat; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""
