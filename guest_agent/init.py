"""What process 1 of the guest does besides being the agent: mounts, loopback, orphans, power-off.

The initramfs has already put the read-only root under a writable overlay and moved /proc, /sys and /dev here.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import sysconfig
from pathlib import Path

USER_ID = 1000
USER_NAME = "sandbox"
USER_HOME = "/home/sandbox"

_libc = ctypes.CDLL(None, use_errno=True)
_MS_NOSUID, _MS_NODEV, _MS_BIND = 2, 4, 4096
_LINUX_REBOOT_CMD_POWER_OFF = 0x4321FEDC
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def bind_over(source: Path, target: Path) -> None:
    """Show the file ``source`` in the place of ``target``."""
    mount(str(source), str(target), "none", _MS_BIND)


def set_up() -> None:
    """Mount what a Linux userland expects, and bring the loopback interface up."""
    os.umask(0o022)
    for kind, target, options in (
        ("proc", "/proc", ""),
        ("sysfs", "/sys", ""),
        ("devtmpfs", "/dev", ""),
        ("devpts", "/dev/pts", "mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", "mode=1777"),
        ("tmpfs", "/run", "mode=755"),
    ):
        if not os.path.ismount(target):
            Path(target).mkdir(exist_ok=True)
            mount(kind, target, kind, _MS_NOSUID, options)
    _link_descriptors()
    Path("/tmp").chmod(0o1777)
    _loopback_up()
    _user_home()
    Path("/proc/self/oom_score_adj").write_text("-1000")


def _link_descriptors() -> None:
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        with contextlib.suppress(FileExistsError):
            Path("/dev", name).symlink_to(f"/proc/self/fd{target}")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _user_home() -> None:
    """The home folder, and in it the one for packages that the user installs: Python looks for it when it starts."""
    home = Path(USER_HOME)
    packages = Path(sysconfig.get_path("purelib", "posix_user", {"userbase": str(home / ".local")}))
    for folder in (*reversed(packages.parents), packages):
        if folder.is_relative_to(home):
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, USER_ID, USER_ID)


def reap() -> dict[int, int]:
    """Collect every child that has ended, orphans included: process id to wait status."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def killed_for_memory(pid: int) -> bool:
    """Whether Linux says in its log that it has killed that process because memory had run out."""
    mark = f"Killed process {pid} (".encode()
    with contextlib.suppress(OSError):
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while True:  # a record a read; BlockingIOError, an OSError, after the last one
                with contextlib.suppress(BrokenPipeError):  # records were overwritten: go on with those that are left
                    if mark in os.read(log, 8192):
                        return True
        finally:
            os.close(log)
    return False


def power_off() -> None:
    """End this VM. Returns only if this process may not do that."""
    _libc.reboot(ctypes.c_uint(_LINUX_REBOOT_CMD_POWER_OFF))


def console(line: str) -> None:
    """One line on the VM's console, which the host reads while it builds a golden snapshot."""
    with contextlib.suppress(OSError):
        Path("/dev/console").write_text(f"vm-kernel: {line}\n", encoding="utf-8")
