"""Root starts the service, an ordinary user runs it: QEMU never has uid 0."""

from __future__ import annotations

import ctypes
import os
import pwd
from pathlib import Path

from vm_kernel import paths
from vm_kernel.errors import ConfigError

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
#: devices whose group the service keeps, so that it can use what root could
_DEVICES = ("/dev/kvm", "/dev/vhost-vsock")


def drop(user: str) -> int:
    """Become ``user`` for good if we are root. Returns the uid that we came from, whose clients are served too.

    Raises ConfigError if there is no such user, or if it could not read our code or our home. Call it with every
    module imported, the configuration read, and no thread started.
    """
    caller = os.geteuid()
    if caller != 0:
        return caller
    home = paths.home()
    entry = give_folders(user)
    os.environ |= {"VM_KERNEL_HOME": str(home), "HOME": str(home), "USER": user, "LOGNAME": user}
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[name]
    _drop_bounding_set()
    os.setgroups(_device_groups())
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    os.chdir("/")
    _check_access(home, user)
    # QEMU opens golden memory as /proc/<our pid>/fd/<n>; the kernel allows that to our uid only if we are dumpable,
    # which changing the uid has taken away
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    return caller


def lock() -> None:
    """From now on neither we nor a program that we start can become more than our user is, and our files are ours.

    Call it with no thread started: it holds for the calling thread, and for what that one starts.
    """
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.umask(0o077)


def _drop_bounding_set() -> None:
    """No process of ours can get a capability back, whatever it starts."""
    prctl = ctypes.CDLL(None).prctl
    capability = 0
    while prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:  # fails at the first that this kernel does not know
        capability += 1


def give_folders(user: str) -> pwd.struct_passwd:
    """Make the service's folders, for ``user``. Called as root, by install-service, too. Raises ConfigError."""
    home = paths.home()
    entry = _entry(user)
    home.mkdir(parents=True, exist_ok=True, mode=0o755)
    for folder in (home, paths.run_dir(), paths.golden_dir(), paths.log_file().parent, home / "boot"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _give(folder, entry)
    return entry


def _entry(user: str) -> pwd.struct_passwd:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(
            f"The pool service was started as root and must become user {user!r}, who does not exist.",
            f"Create it: useradd --system --no-create-home --home-dir /var/lib/vm-kernel "
            f"--shell /usr/sbin/nologin {user}; or set c.PoolConfig.user.",
        ) from None
    if entry.pw_uid == 0:
        raise ConfigError("c.PoolConfig.user must not be root.", "Name an ordinary user.")
    return entry


def _give(folder: Path, entry: pwd.struct_passwd) -> None:
    """Hand a folder of ours, and what an earlier service of another user left in it, to that user."""
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a symbolic link.", "Remove it; nothing of ours is one.")
    if folder.stat().st_uid != entry.pw_uid:
        os.chown(folder, entry.pw_uid, entry.pw_gid)


def _device_groups() -> list[int]:
    groups = {Path(device).stat().st_gid for device in _DEVICES if Path(device).exists()}
    return sorted(groups - {0})


def _check_access(home: Path, user: str) -> None:
    if not os.access(home, os.W_OK | os.X_OK):
        raise ConfigError(
            f"User {user!r}, as whom the pool service runs, cannot enter {home}.",
            "Set VM_KERNEL_HOME to a folder that is not below a private one, such as /var/lib/vm-kernel.",
        )
