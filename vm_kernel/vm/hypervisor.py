"""The connection to libvirt: opened once by the pool service, shared by its threads.

By default libvirt's QEMU driver runs inside this process (``qemu:///embed``): no daemon, no root. Its files are in a
folder that nobody else uses: so what a crashed predecessor left there can be cleared away without asking.
Not here: what a VM looks like (``domain_xml``) or how it is forked (``golden``, ``machine``).
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import threading
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from vm_kernel.errors import HostError, VMError
from vm_kernel.paths import make_private_dir
from vm_kernel.vm import bounds, embedded, process
from vm_kernel.vm.capabilities import Capabilities, check_libvirt, of_qemu
from vm_kernel.vm.domain_xml import DOMAIN_TITLE
from vm_kernel.vm.ends import GuestShutdowns, in_words
from vm_kernel.vm.host import libvirt_version, qemu_binary, qemu_build
from vm_kernel.vm.process import QemuProcess

if TYPE_CHECKING:
    import libvirt

#: How long close() waits for VMs that other threads are just starting.
_STARTING_TIMEOUT_S = 30.0


class Hypervisor:
    """libvirt, by default its QEMU driver inside this very process. Thread-safe. Use it as a context manager, or close.

    run_dir: a folder of its own, for sockets and libvirt's files. vm_dir: sockets and consoles of VMs.
    """

    def __init__(self, run_dir: Path, uri: str, lock: int, able: Capabilities) -> None:
        """Not for callers: use :meth:`open`."""
        #: what this host's QEMU can do
        self.capabilities = able
        self.run_dir = run_dir
        self.vm_dir = run_dir / embedded.VM_FOLDER
        self._embedded = not uri
        self._uri = uri or f"qemu:///embed?root={quote(str(run_dir))}"
        self._connection: libvirt.virConnect | None = None
        self._shutdowns: GuestShutdowns | None = None
        self._lock = lock
        self._qemus: dict[str, QemuProcess] = {}
        self._reaper = process.Reaper()
        self._guard = threading.Lock()
        self._starting = 0
        self._leftovers = 0

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def open(cls, run_dir: Path, uri: str = "") -> Hypervisor:
        """Connect. Clears away what a crashed predecessor left in ``run_dir`` (see destroy_leftovers).

        Called once when the pool service starts. ``uri``: another libvirt than the embedded one. libvirt allows one
        embedded driver in the life of a process. Raises HostError if libvirt or QEMU is missing or too old, if another
        process uses the same ``run_dir``, or for root: QEMU would run as root too.
        """
        qemu_binary()
        if not uri and os.geteuid() == 0:
            raise HostError(
                "VMs are not run by root, because QEMU would be root too.",
                "Start the pool service (vm-kernel pool start): it becomes an ordinary user first.",
            )
        check_libvirt()
        able = of_qemu()
        make_private_dir(run_dir)
        hypervisor = cls(run_dir, uri, _lock(run_dir / "lock"), able)
        try:
            hypervisor._connect()
        except BaseException:
            hypervisor.close()
            raise
        return hypervisor

    def _connect(self) -> None:
        process.adopt_orphans()
        self._leftovers = embedded.sweep(self.run_dir)
        make_private_dir(self.vm_dir)
        if self._embedded:
            embedded.write_settings(self.run_dir)
        with embedded.no_home(self.run_dir):
            self._connection = embedded.open_libvirt(self._uri)
            self._shutdowns = GuestShutdowns(self._connection)
            self._ask_qemu(self._connection)

    def _ask_qemu(self, connection: libvirt.virConnect) -> None:
        """Have libvirt find out what this QEMU can do, so that the first VM does not wait for it."""
        import libvirt

        try:
            with self._reaping():
                connection.getDomainCapabilities(str(qemu_binary()), "x86_64", None, None, 0)
        except libvirt.libvirtError as error:
            raise HostError(
                f"libvirt cannot use {qemu_binary()}: {error}", "Reinstall the Debian package qemu-system-x86."
            ) from error

    def destroy_leftovers(self) -> int:
        """Destroy every VM of ours that this object did not start, and their files. Returns how many there were.

        Called by the pool service right after open(). With the embedded driver, open() has done it already, before
        libvirt could adopt them; on a shared libvirt ours are known by their title, and may be another service's.
        """
        import libvirt

        count, self._leftovers = self._leftovers, 0
        for domain in self._connected().listAllDomains():
            if domain.name() in self._qemus:
                continue
            with suppress(libvirt.libvirtError):
                if _is_orphan(domain.XMLDesc()):
                    domain.destroy()
                    count += 1
        return count

    def facts(self) -> dict[str, str]:
        """Versions that a golden snapshot depends on. Raises HostError."""
        return {"qemu": qemu_build(), "libvirt": libvirt_version()}

    def start(self, name: str, xml: str) -> tuple[libvirt.virDomain, QemuProcess]:
        """Start a transient domain, paused and within ``bounds``. Raises libvirt.libvirtError, VMError.

        Called by ``golden`` for a template and by ``machine`` for a clone, which wrap the errors.
        Undone by :meth:`destroy`.
        """
        import libvirt

        with self._guard:
            connection = self._connected()
            self._starting += 1
        try:
            with self._reaping(name):
                domain = connection.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)
            try:
                qemu = QemuProcess(self._pid_of(name))
                bounds.confine(qemu.pid, domain.maxMemory() >> 10, domain.maxVcpus())
                embedded.make_private(self.run_dir, name)
            except (OSError, ValueError) as error:
                with suppress(libvirt.libvirtError):
                    domain.destroy()
                raise VMError(f"QEMU ended as soon as it was started ({error})") from error
            with self._guard:
                self._qemus[name] = qemu
            self._reaper.add(qemu)
        finally:
            with self._guard:
                self._starting -= 1
        return domain, qemu

    def destroy(self, name: str, domain: libvirt.virDomain, qemu: QemuProcess) -> None:
        """Kill a domain that start() made and remove libvirt's files of it. Not to be called twice at once."""
        import libvirt

        qemu.kill()
        self._reaper.remove(qemu)
        with suppress(libvirt.libvirtError):  # libvirt may have noticed by itself, and forgotten it
            domain.destroy()
        qemu.close()
        self.log_file(name).unlink(missing_ok=True)
        with self._guard:
            self._qemus.pop(name, None)

    def abort(self, name: str) -> None:
        """Kill a QEMU that does not answer: who waits for it in another thread gets an error then, and destroys it."""
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process.qemu_of_guest(name), signal.SIGKILL)

    def end_cause(self, name: str, qemu: QemuProcess) -> str:
        """Why a VM has ended by itself, in words. Called once, when its process has ended and before destroy()."""
        return in_words(self._shutdowns.pop(name) if self._shutdowns else None, qemu.exit_status)

    def log_file(self, name: str) -> Path:
        """QEMU's log of a domain (with the embedded driver)."""
        return self.run_dir / "log" / "qemu" / f"{name}.log"

    def last_words(self, name: str) -> str:
        """What QEMU said before it died, to go behind an error message; empty if it said nothing."""
        try:
            lines = self.log_file(name).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        said = [line.split("qemu-system-x86_64: ", 1)[1] for line in lines if "qemu-system-x86_64: " in line]
        return f" (QEMU said: {' / '.join(said[-3:])})" if said else ""

    def _connected(self) -> libvirt.virConnect:
        if self._connection is None:
            raise VMError("The connection to libvirt is closed: the service is stopping.")
        return self._connection

    def _pid_of(self, name: str) -> int:
        if self._embedded:
            return int((self.run_dir / "run" / "qemu" / f"{name}.pid").read_text())
        return process.qemu_of_guest(name)

    def _reaping(self, name: str = "") -> AbstractContextManager[None]:
        return embedded.reaping(self.run_dir, name) if self._embedded else nullcontext()

    def close(self) -> None:
        """Destroy what still runs, disconnect, remove sockets, logs and locks. Idempotent. Called at the very end."""
        with self._guard:
            connection, self._connection = self._connection, None
        deadline = time.monotonic() + _STARTING_TIMEOUT_S
        while self._starting and time.monotonic() < deadline:
            time.sleep(0.01)
        if connection is not None:
            for domain in connection.listAllDomains():
                if qemu := self._qemus.get(domain.name()):
                    self.destroy(domain.name(), domain, qemu)
            if self._shutdowns is not None:
                self._shutdowns.close()
            connection.close()
        if self._lock >= 0:
            embedded.sweep(self.run_dir)
            (self.run_dir / "lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1
        self._reaper.close()


def _is_orphan(xml: str) -> bool:
    """Whether a domain is ours, and the process in whose memory its golden RAM was has gone."""
    owner = re.search(r"mem-path=/proc/(\d+)/fd/", xml)
    ours = f"<title>{DOMAIN_TITLE}</title>" in xml
    return ours and owner is not None and not Path(f"/proc/{owner[1]}").exists()


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
