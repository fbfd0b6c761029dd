"""One running VM, forked from a golden snapshot: made, inspected, destroyed.

Not here: who uses it (the pool), and what is said to the guest (``vm_kernel.guest``).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4
from xml.etree import ElementTree

from vm_kernel.errors import CloneError, VMError
from vm_kernel.vm.domain_xml import Role, domain_xml
from vm_kernel.vm.golden import GoldenSnapshot
from vm_kernel.vm.hypervisor import Hypervisor
from vm_kernel.vm.memory import unique_memory
from vm_kernel.vm.monitor import Monitor
from vm_kernel.vm.process import QemuProcess

if TYPE_CHECKING:
    import libvirt

#: libvirt cuts longer names short in the names of its own folders.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")
_LOAD_TIMEOUT_S = 30.0


class _Domain:
    """What a prepared and a running VM have in common: a domain, its QEMU, its socket, and its end."""

    def __init__(
        self, hv: Hypervisor, name: str, uuid: UUID, domain: libvirt.virDomain, qemu: QemuProcess, channel: Path | None
    ) -> None:
        self.name = name
        self.uuid = str(uuid)
        self.pid = qemu.pid
        self.channel_path = channel
        self._hv = hv
        self._domain = domain
        self._qemu = qemu
        self._destroying = threading.Lock()
        self._destroyed = False

    @property
    def alive(self) -> bool:
        """Whether its QEMU still runs. Cheap (no libvirt call): the pool asks often."""
        return self._qemu.alive

    @property
    def stopped(self) -> bool:
        """Whether its QEMU was stopped by a signal: it would not answer."""
        return self._qemu.stopped

    def end_cause(self) -> str:
        """Why it has ended by itself, in words. Called once, when ``fileno()`` has become readable."""
        return self._hv.end_cause(self.name, self._qemu)

    def fileno(self) -> int:
        """A pidfd that becomes readable when the QEMU ends: for an event loop. -1 after destroy()."""
        return self._qemu.fileno()

    def destroy(self) -> None:
        """Kill the VM at once and remove every trace of it. Idempotent, callable from any thread, does not raise."""
        with self._destroying:
            if self._destroyed:
                return
            self._hv.destroy(self.name, self._domain, self._qemu)
            if self.channel_path is not None:
                self.channel_path.unlink(missing_ok=True)
            self._destroyed = True


class Pause:
    """How long a VM stood still, in milliseconds; known when it runs again."""

    def __init__(self) -> None:
        self.ms = 0.0
        self._began = time.perf_counter()

    def end(self) -> None:
        """It runs again."""
        self.ms = 1000 * (time.perf_counter() - self._began)


class Machine(_Domain):
    """A running VM. The pool gets it from :func:`clone` or :meth:`PreparedMachine.restore`.

    name: the libvirt domain's name, as given. uuid: its libvirt UUID. pid: of its QEMU.
    channel_path: unix socket of the virtio-serial channel, ready to be connected to (None with vsock).
    cid: the VM's vsock context id (None with virtio-serial).
    created_at: when the VM was resumed (timezone-aware).
    timings: milliseconds of each stage: start, restore, resume, and total (their sum).
    """

    cid: int | None
    created_at: datetime
    timings: dict[str, float]

    def unique_memory(self) -> int:
        """Bytes of host memory that it has for itself. Raises ProcessLookupError if it has gone."""
        return unique_memory(self.pid)

    @contextmanager
    def paused(self) -> Iterator[Pause]:
        """The VM stands still. ``checkpoints`` reads its memory then. Raises VMError; it runs on in any case."""
        monitor, pause = Monitor(self._domain), Pause()
        try:
            monitor.command("stop")
            yield pause
        finally:
            with suppress(VMError):  # then it has ended, and whoever waits for it is told so
                monitor.command("cont")
            pause.end()

    def save_devices(self, target: Path) -> None:
        """Write the state of its devices, without its RAM, to a new file. Only while it is paused. Raises VMError."""
        Monitor(self._domain).save_devices(target)


class PreparedMachine(_Domain):
    """A QEMU that was started ahead and waits, empty, for the golden snapshot: the slow half of a clone."""

    _golden: GoldenSnapshot
    _start_ms: float

    def restore(self, state: bytes | None = None) -> Machine:
        """Load device state, the golden snapshot's unless told otherwise, and run. Call it once.

        Raises CloneError; the shell is then destroyed.
        """
        began = time.perf_counter()
        try:
            Monitor(self._domain).load_state(self._golden.state if state is None else state, _LOAD_TIMEOUT_S)
            loaded = time.perf_counter()
            self._domain.resume()
            machine = Machine(self._hv, self.name, UUID(self.uuid), self._domain, self._qemu, self.channel_path)
            machine.cid = _context_id(self._domain) if self.channel_path is None else None
        except Exception as error:
            raise self._failed(error) from error
        resumed = time.perf_counter()
        machine.created_at = datetime.now(UTC)
        stages = {"start": self._start_ms, "restore": (loaded - began) * 1000, "resume": (resumed - loaded) * 1000}
        machine.timings = {**stages, "total": sum(stages.values())}
        return machine

    def _failed(self, error: Exception) -> CloneError:
        said = self._hv.last_words(self.name)
        self.destroy()
        return CloneError(
            f"VM {self.name} could not be restored from its golden snapshot: {_message(error)}{said}",
            "If this goes on, remove the golden snapshots; they are built anew.",
        )


def prepare(hv: Hypervisor, golden: GoldenSnapshot, name: str) -> PreparedMachine:
    """Start a QEMU that waits for :meth:`PreparedMachine.restore`. Raises CloneError.

    ``name`` is unique among the VMs of this host's libvirt; 20 characters at most: a-z, 0-9, hyphens.
    """
    if not _NAME.fullmatch(name):
        raise CloneError(f"{name!r} cannot be a VM's name.", f"Names match {_NAME.pattern}.")
    spec = golden.spec
    channel = hv.vm_dir / f"{name}.sock" if spec.transport == "virtio-serial" else None
    role = Role(
        boot=False,
        ram_path=golden.ram_path,
        ram_shared=False,
        console_log=None,
        channel=channel,
        ram_read_only=hv.capabilities.read_only_memory,
    )
    uuid = uuid4()
    began = time.perf_counter()
    try:
        domain, qemu = hv.start(name, domain_xml(spec, role, name, uuid, uuid4()))
    except Exception as error:
        said = hv.last_words(name)
        hv.log_file(name).unlink(missing_ok=True)
        if channel is not None:
            channel.unlink(missing_ok=True)
        raise CloneError(f"QEMU for VM {name} could not be started: {_message(error)}{said}") from error
    prepared = PreparedMachine(hv, name, uuid, domain, qemu, channel)
    prepared._golden = golden
    prepared._start_ms = (time.perf_counter() - began) * 1000
    return prepared


def clone(hv: Hypervisor, golden: GoldenSnapshot, name: str) -> Machine:
    """Fork a running VM: :func:`prepare` and :meth:`PreparedMachine.restore` in one. Raises CloneError."""
    return prepare(hv, golden, name).restore()


def _context_id(domain: libvirt.virDomain) -> int:
    cid = ElementTree.fromstring(domain.XMLDesc()).find("devices/vsock/cid")
    if cid is None:
        raise VMError("libvirt gave the VM no vsock context id")
    return int(cid.attrib["address"])


def _message(error: Exception) -> str:
    return error.message if isinstance(error, VMError) else str(error)
