"""The connection to libvirt: opened once by the pool service, shared by its threads.

By default libvirt's QEMU driver runs inside this process (``qemu:///embed``): no daemon, no root. Its files are in
``<run_dir>/lv``, and nobody else's: so what a crashed predecessor left there can be cleared away without asking.
Not here: what a VM looks like (``domain_xml``) or how it is forked (``golden``, ``machine``).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from vm_kernel.errors import HostError
from vm_kernel.vm import process
from vm_kernel.vm.domain_xml import DOMAIN_TITLE
from vm_kernel.vm.host import libvirt_version, qemu_binary, qemu_version
from vm_kernel.vm.process import QemuProcess

if TYPE_CHECKING:
    import libvirt

#: stdio_handler: no virtlogd is running. The rest: nothing of the host's (cgroups, namespaces, ownership) is changed.
_QEMU_CONF = """\
stdio_handler = "file"
seccomp_sandbox = 1
security_driver = "none"
security_default_confined = 0
cgroup_controllers = []
namespaces = []
dynamic_ownership = 0
remember_owner = 0
dump_guest_core = 0
user = "+{uid}"
group = "+{gid}"
"""

#: What libvirt leaves below its root that is worth keeping: answers about QEMU that cost it seconds to find out.
_KEPT = "cache"


class Hypervisor:
    """libvirt, by default its QEMU driver inside this very process (``qemu:///embed``). Thread-safe."""

    def __init__(self, run_dir: Path, uri: str, lock: int) -> None:
        """Not for callers: use :meth:`open`."""
        self.run_dir = run_dir
        self.root = run_dir / "lv"
        self.uri = uri or f"qemu:///embed?root={quote(str(self.root))}"
        self.embedded = not uri
        self.connection: libvirt.virConnect = None
        self._lock = lock
        self._domains: dict[str, QemuProcess] = {}
        self._guard = threading.Lock()
        self._probed: tuple[int, int] | None = None
        self._leftovers = 0

    @classmethod
    def open(cls, run_dir: Path, uri: str = "") -> Hypervisor:
        """Connect. Clears away what a crashed predecessor left in ``run_dir`` (see destroy_leftovers).

        Called once when the pool service starts. ``uri``: another libvirt than the embedded one.
        Raises HostError if libvirt or QEMU is missing, or another process uses the same ``run_dir``.
        """
        qemu_binary()
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        hypervisor = cls(run_dir, uri, _lock(run_dir / "lv.lock"))
        try:
            hypervisor._connect()
        except BaseException:
            hypervisor.close()
            raise
        return hypervisor

    def _connect(self) -> None:
        process.adopt_orphans()
        if self.embedded:
            self._leftovers = self._sweep()
            (self.root / "etc").mkdir(parents=True, exist_ok=True, mode=0o700)
            conf = _QEMU_CONF.format(uid=os.geteuid(), gid=os.getegid())
            (self.root / "etc" / "qemu.conf").write_text(conf)
        self.connection = _open_libvirt(self.uri)
        with self.probing():
            self.connection.getDomainCapabilities(str(qemu_binary()), "x86_64", None, None, 0)

    def _sweep(self) -> int:
        """Kill every QEMU of this root, remove what libvirt would remember of it. Returns how many were killed."""
        strays = list(process.qemus_of(self.root))
        process.kill_all(strays)
        for entry in self.root.iterdir() if self.root.exists() else ():
            if entry.name != _KEPT:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        return len(strays)

    def destroy_leftovers(self) -> int:
        """Destroy every VM of ours that this object did not start, and their files. Returns how many there were.

        Called by the pool service right after open(). With the embedded driver, open() has done it already, before
        libvirt could adopt them: it must be sure that nothing of the old root is in use.
        """
        import libvirt

        count, self._leftovers = self._leftovers, 0
        for domain in self.connection.listAllDomains():
            if domain.name() in self._domains:
                continue
            with suppress(libvirt.libvirtError):  # no title: it is somebody else's
                if domain.metadata(libvirt.VIR_DOMAIN_METADATA_TITLE, None) == DOMAIN_TITLE:
                    domain.destroy()
                    count += 1
        return count

    def facts(self) -> dict[str, str]:
        """Versions that a golden snapshot depends on."""
        return {"qemu": qemu_version(), "libvirt": libvirt_version()}

    def start(self, name: str, xml: str, *, paused: bool) -> tuple[libvirt.virDomain, QemuProcess]:
        """Start a transient domain. Raises libvirt.libvirtError. Undone by :meth:`destroy`."""
        import libvirt

        with self.probing():
            domain = self.connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED if paused else 0)
        try:
            qemu = QemuProcess(self._pid_of(name))
        except (OSError, ValueError):
            with suppress(libvirt.libvirtError):
                domain.destroy()
            raise
        with self._guard:
            self._domains[name] = qemu
        return domain, qemu

    def destroy(self, name: str, domain: libvirt.virDomain, qemu: QemuProcess) -> None:
        """Kill a domain that start() made and remove libvirt's files of it. Not to be called twice at once."""
        import libvirt

        qemu.kill()
        with suppress(libvirt.libvirtError):  # libvirt may have noticed by itself, and forgotten it
            domain.destroy()
        qemu.close()
        self.log_file(name).unlink(missing_ok=True)
        with self._guard:
            self._domains.pop(name, None)

    def log_file(self, name: str) -> Path:
        """QEMU's log of a domain: what it said before it died."""
        return self.root / "log" / "qemu" / f"{name}.log"

    def last_words(self, name: str) -> str:
        """The end of QEMU's log, to go behind an error message; empty if it said nothing."""
        try:
            lines = self.log_file(name).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        words = [line.strip() for line in lines if "qemu-system" in line and not line.startswith(("/", "LC_ALL"))]
        return f" (QEMU said: {' / '.join(words[-3:])})" if words else ""

    def _pid_of(self, name: str) -> int:
        if self.embedded:
            return int((self.root / "run" / "qemu" / f"{name}.pid").read_text())
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and f"guest={name},".encode() in (entry / "cmdline").read_bytes():
                    return int(entry.name)
        raise ProcessLookupError(f"no QEMU of {name}")

    @contextmanager
    def probing(self) -> Iterator[None]:
        """While libvirt may ask a newly installed QEMU what it can do, reap the QEMUs that it asks.

        It starts them detached, so that they are our orphans, and waits 40 s for their zombies to go.
        """
        facts = qemu_binary().stat()
        seen = (facts.st_ctime_ns, facts.st_ino)
        if seen == self._probed or not self.embedded:
            yield
            return
        done = threading.Event()
        reaper = threading.Thread(target=self._reap_probes, args=(done,), name="probe-reaper", daemon=True)
        reaper.start()
        try:
            yield
        finally:
            done.set()
            reaper.join()
        self._probed = seen

    def _reap_probes(self, done: threading.Event) -> None:
        pids: set[int] = set()
        while not done.wait(0.01):
            for pid_file in (self.root / "lib" / "qemu").glob("qmp-*/qmp.pid"):
                with suppress(OSError, ValueError):
                    pids.add(int(pid_file.read_text()))
            for pid in pids:
                process.reap(pid)

    def close(self) -> None:
        """Destroy what still runs, disconnect, remove sockets, logs and locks. Idempotent."""
        connection, self.connection = self.connection, None
        if connection is not None:
            for domain in connection.listAllDomains():
                if domain.name() in self._domains:
                    self.destroy(domain.name(), domain, self._domains[domain.name()])
            connection.close()
        if self._lock >= 0:
            if self.embedded:
                self._sweep()
            (self.run_dir / "lv.lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1


def _lock(path: Path) -> int:
    """Take the lock file, for the life of this process. Raises HostError if another process has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise HostError(
                f"Another process runs virtual machines in {path.parent}.",
                "Stop that pool service first (vm-kernel pool stop).",
            ) from None
        with suppress(FileNotFoundError):  # its last owner may have removed it between our two calls
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


_event_loop: threading.Thread | None = None


def _open_libvirt(uri: str) -> Any:
    """Connect, with libvirt's event loop in a thread: without one, libvirt does not notice what QEMU says."""
    global _event_loop
    try:
        import libvirt
    except ImportError as error:
        raise HostError(
            f"libvirt's Python binding cannot be loaded: {error}", "Install the Debian package libvirt0."
        ) from error

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    if _event_loop is None:
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it would print what we raise
        libvirt.virEventRegisterDefaultImpl()
        _event_loop = threading.Thread(target=run, name="libvirt-events", daemon=True)
        _event_loop.start()
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise HostError(
            f"libvirt cannot be opened at {uri}: {error}",
            "Install the Debian package libvirt-daemon-driver-qemu, or mend c.PoolConfig.libvirt_uri.",
        ) from error
