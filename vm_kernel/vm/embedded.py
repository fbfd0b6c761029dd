"""libvirt's QEMU driver inside our own process: its settings, its event loop, and its ways with files and orphans.

What is known here is what DESIGN.md's "facts measured" say, and two more: libvirt waits up to 40 s for the zombie of a
QEMU that failed to start, or that it only asked what it can do; and it uses the user's own folders, whatever its root.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vm_kernel.errors import HostError
from vm_kernel.vm import process

if TYPE_CHECKING:
    import libvirt

#: Our own folder below libvirt's root: sockets and consoles of VMs.
VM_FOLDER = "vm"

#: What libvirt makes below its root and nobody needs afterwards. Kept is "cache": answers that cost seconds to get.
_VOLATILE = ("etc", "lib", "log", "run", VM_FOLDER)

#: stdio_handler: no virtlogd is running. The rest: nothing of the host's (cgroups, namespaces, ownership) is changed.
_SETTINGS = """\
stdio_handler = "file"
seccomp_sandbox = 1
security_driver = "none"
security_default_confined = 0
cgroup_controllers = []
namespaces = []
dynamic_ownership = 0
remember_owner = 0
dump_guest_core = 0
max_core = 0
user = "+{uid}"
group = "+{gid}"
"""


def write_settings(root: Path) -> None:
    """libvirt's qemu.conf. Before it is opened."""
    folder = root / "etc"
    folder.mkdir(exist_ok=True, mode=0o700)
    (folder / "qemu.conf").write_text(_SETTINGS.format(uid=os.geteuid(), gid=os.getegid()))


def sweep(root: Path) -> int:
    """Kill every QEMU of this root and remove what libvirt would remember of it. Returns how many were killed.

    Only for the owner of the root's lock, while libvirt is not open.
    """
    strays = list(process.qemus_of(root))
    process.kill_all(strays)
    for name in _VOLATILE:
        shutil.rmtree(root / name, ignore_errors=True)
    return len(strays)


def make_private(root: Path, name: str) -> None:
    """libvirt makes some files of a VM for others, too. The folder above them is ours alone; now they are, too."""
    monitors = root.glob(f"lib/qemu/domain-*-{name}/monitor.sock")
    for path in (root / VM_FOLDER / f"{name}.sock", root / "run" / "qemu" / f"{name}.pid", *monitors):
        with suppress(FileNotFoundError):
            path.chmod(0o700 if path.is_socket() else 0o600)


_REAP_INTERVAL_S = 0.02

_event_loop: threading.Thread | None = None


def open_libvirt(uri: str) -> libvirt.virConnect:
    """Connect, with libvirt's event loop in a thread: without one, libvirt does not notice what QEMU says.

    Raises HostError.
    """
    global _event_loop
    try:
        import libvirt
    except ImportError as error:
        raise HostError(
            f"libvirt's Python binding cannot be loaded: {error}", "Install the Debian package libvirt0."
        ) from error
    if _event_loop is None:
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it would print what we raise
        libvirt.virEventRegisterDefaultImpl()
        _event_loop = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
        _event_loop.start()
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as error:
        hint = "Install the Debian package libvirt-daemon-driver-qemu, or mend c.PoolConfig.libvirt_uri."
        if os.strerror(errno.ENOSPC) in str(error):
            hint = "Make room there, or set VM_KERNEL_HOME to another place."
        raise HostError(f"libvirt cannot be opened at {uri}: {error}", hint) from error


def _run_events() -> None:
    import libvirt

    while True:
        libvirt.virEventRunDefaultImpl()


@contextmanager
def no_home(root: Path) -> Iterator[None]:
    """While libvirt is opened, keep it away from the user's own folders (which a service's user may not even have).

    It would put files into the one for caches, and fail if it may not look for firmware in the one for settings.
    """
    ours = {"XDG_CACHE_HOME": str(root / "cache"), "XDG_CONFIG_HOME": str(root / "etc")}
    before = {name: os.environ.get(name) for name in ours}
    os.environ |= ours
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def reaping(root: Path, name: str = "") -> Iterator[None]:
    """While libvirt starts the QEMU of domain ``name``, or asks a QEMU what it can do, take away those that end.

    They are our orphans, and libvirt waits up to 40 s for the zombie of one that failed to start or was asked.
    """
    done = threading.Event()
    pid_files = ["lib/qemu/qmp-*/qmp.pid", *([f"run/qemu/{name}.pid"] if name else [])]
    reaper = threading.Thread(target=_reap, args=(root, pid_files, done), name="qemu-reaper", daemon=True)
    reaper.start()
    try:
        yield
    finally:
        done.set()
        reaper.join()


def _reap(root: Path, pid_files: list[str], done: threading.Event) -> None:
    pids: set[int] = set()
    while not done.wait(_REAP_INTERVAL_S):
        for pid_file in (path for pattern in pid_files for path in root.glob(pattern)):
            with suppress(OSError, ValueError):
                pids.add(int(pid_file.read_text()))
        for pid in pids:
            process.reap(pid)
