"""What this host can do: QEMU, libvirt, KVM (by running a guest), vsock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vm_kernel.vm.spec import AcceleratorKind, TransportKind


@dataclass(frozen=True)
class Accelerator:
    """Which accelerator VMs use, and a sentence that says why."""

    kind: AcceleratorKind
    reason: str


@dataclass(frozen=True)
class Transport:
    """How the host talks to the guest agent, and a sentence that says why."""

    kind: TransportKind
    reason: str


def qemu_binary() -> Path:
    """QEMU's system emulator for x86-64. Raises HostError if it is not installed."""
    raise NotImplementedError


def qemu_version() -> str:
    """For instance ``7.2.22``. Raises HostError."""
    raise NotImplementedError


def libvirt_version() -> str:
    """For instance ``9.0.0``. Raises HostError if libvirt-python cannot be loaded."""
    raise NotImplementedError


def resolve_accelerator(setting: str, cache_file: Path, kernel: Path) -> Accelerator:
    """KVM or TCG. ``setting``: auto, kvm or tcg. ``kernel``: a Linux kernel to try (the image's vmlinuz).

    auto = KVM only if that kernel really ran under it; takes up to 5 s once, then ``cache_file`` remembers it until
    the host's kernel or QEMU changes. Raises HostError if ``kvm`` is demanded and does not run.
    """
    raise NotImplementedError


def resolve_transport(setting: str) -> Transport:
    """vsock or virtio-serial. auto = vsock iff /dev/vhost-vsock can be opened (and closed again).

    Raises HostError if ``vsock`` is demanded and there is none.
    """
    raise NotImplementedError
