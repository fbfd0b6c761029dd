"""One running VM, forked from a golden snapshot: made, inspected, destroyed.

Not here: who uses it (the pool), and what is said to the guest (``vm_kernel.guest``).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from vm_kernel.vm.golden import GoldenSnapshot
from vm_kernel.vm.hypervisor import Hypervisor


class Machine:
    """A running VM. The pool gets it from :func:`clone` or :meth:`PreparedMachine.restore`.

    name: the libvirt domain's name, as given. uuid: its libvirt UUID. pid: of its QEMU.
    channel_path: unix socket of the virtio-serial channel, ready to be connected to (None with vsock).
    cid: the VM's vsock context id (None with virtio-serial).
    created_at: when the VM was resumed (timezone-aware).
    timings: milliseconds of each stage: define, restore, resume, total.
    """

    name: str
    uuid: str
    pid: int
    channel_path: Path | None
    cid: int | None
    created_at: datetime
    timings: dict[str, float]

    @property
    def alive(self) -> bool:
        """Whether its QEMU still runs. Cheap (no libvirt call): the pool asks often."""
        raise NotImplementedError

    def fileno(self) -> int:
        """A pidfd that becomes readable when the QEMU ends: for an event loop. Valid until destroy()."""
        raise NotImplementedError

    def destroy(self) -> None:
        """Kill the VM at once and remove every trace of it. Idempotent; any thread; never raises VMError."""
        raise NotImplementedError


class PreparedMachine:
    """A QEMU that was started ahead and waits, empty, for the golden snapshot: the slow half of a clone.

    The pool keeps one or two of them so that a refill costs :meth:`restore` alone.
    """

    name: str

    def restore(self) -> Machine:
        """Load the golden snapshot and run. Raises CloneError; the shell is then destroyed. Call it once."""
        raise NotImplementedError

    def destroy(self) -> None:
        """Throw it away unused. Idempotent."""
        raise NotImplementedError


def prepare(hv: Hypervisor, golden: GoldenSnapshot, name: str) -> PreparedMachine:
    """Start a QEMU that waits for :meth:`PreparedMachine.restore`. Raises CloneError."""
    raise NotImplementedError


def clone(hv: Hypervisor, golden: GoldenSnapshot, name: str) -> Machine:
    """Fork a VM: ``prepare`` and ``restore`` in one. Raises CloneError. ``name`` is unique, <= 20 characters."""
    raise NotImplementedError


Progress = Callable[[str, float], None]
