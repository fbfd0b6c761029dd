"""What this host can do: QEMU, libvirt, KVM, vsock. KVM is tried by running a guest, see ``kvm_probe``."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vm_kernel.errors import ConfigError, HostError
from vm_kernel.vm.kvm_probe import probe_kvm
from vm_kernel.vm.spec import AcceleratorKind, TransportKind

_QEMU = "qemu-system-x86_64"
_KVM_DEVICE = Path("/dev/kvm")
_VSOCK_DEVICE = Path("/dev/vhost-vsock")
_NOT_A_BOUNDARY = "VMs run under TCG: functional, but slower, and not a security boundary."


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
    if found := shutil.which(_QEMU):
        return Path(found)
    raise HostError(f"QEMU ({_QEMU}) is not installed.", "Install the Debian package qemu-system-x86.")


def qemu_version() -> str:
    """For instance ``7.2.22``. Raises HostError."""
    match = re.search(r"\d+(?:\.\d+)+", qemu_build())
    if not match:
        raise HostError(f"QEMU does not say its version: {qemu_build()!r}", "Reinstall qemu-system-x86.")
    return match[0]


def qemu_build() -> str:
    """The whole version line, with the distribution's revision: two builds of one version may differ."""
    binary = qemu_binary()
    return _version_line(binary, binary.stat().st_ctime_ns)


@lru_cache(maxsize=4)
def _version_line(binary: Path, _changed_ns: int) -> str:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"QEMU does not start: {error}", "Reinstall the Debian package qemu-system-x86.") from error
    return answer.stdout.splitlines()[0]


def libvirt_version() -> str:
    """For instance ``9.0.0``. Raises HostError if libvirt-python cannot be loaded."""
    try:
        import libvirt
    except ImportError as error:
        raise HostError(
            f"libvirt's Python binding cannot be loaded: {error}", "Install the Debian package libvirt0."
        ) from error
    number = libvirt.getVersion()
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def resolve_accelerator(setting: str, cache_file: Path, kernel: Path) -> Accelerator:
    """KVM or TCG. ``setting``: auto, kvm or tcg. ``kernel``: a Linux kernel to try (the image's vmlinuz).

    auto = KVM only if that kernel really ran under it. That takes up to 5 s where it does not run; ``cache_file``
    remembers the answer until the host's kernel, QEMU or the device's permissions change.
    Raises HostError if ``kvm`` is demanded and does not run. The pool service calls it once, when it starts.
    """
    if setting == "tcg":
        return Accelerator("tcg", f"TCG was asked for. {_NOT_A_BOUNDARY}")
    if setting not in ("auto", "kvm"):
        raise ConfigError(f"Unknown accelerator {setting!r}.", "Use auto, kvm or tcg.")
    works, reason = _kvm_works(cache_file, kernel)
    if works:
        return Accelerator("kvm", reason)
    if setting == "kvm":
        raise HostError(
            f"KVM was asked for, but cannot be used: {reason}",
            "Set c.PoolConfig.accelerator to 'auto' or 'tcg', or make /dev/kvm usable (vm-kernel doctor tells more).",
        )
    return Accelerator("tcg", f"{reason} {_NOT_A_BOUNDARY}")


def _kvm_works(cache_file: Path, kernel: Path) -> tuple[bool, str]:
    if not _KVM_DEVICE.exists():
        return False, f"{_KVM_DEVICE} does not exist: this host has no KVM."
    try:
        os.close(os.open(_KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return False, f"{_KVM_DEVICE} cannot be opened ({error.strerror}): is this user in the group kvm?"
    facts = {"kernel": platform.release(), "host": platform.version(), "qemu": qemu_build(), "cpu": cpu_model()}
    with suppress(OSError, ValueError, KeyError, TypeError):
        remembered = json.loads(cache_file.read_text())
        if remembered["facts"] == facts:
            return bool(remembered["works"]), str(remembered["reason"])
    works, reason = probe_kvm(qemu_binary(), kernel)
    with suppress(OSError):  # not remembered: the next start tries again
        cache_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = cache_file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"facts": facts, "works": works, "reason": reason}, indent=1))
        draft.replace(cache_file)
    return works, reason


def cpu_model() -> str:
    """The processor's own name and microcode: device state saved under KVM depends on it."""
    wanted = ("model name", "microcode", "stepping")
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return " ".join(found.get(name, "?") for name in wanted)


def resolve_transport(setting: str) -> Transport:
    """vsock or virtio-serial. auto = vsock iff /dev/vhost-vsock can be opened.

    Only that device is touched, never an AF_VSOCK socket: on a host that is a guest itself, the socket would talk to
    somebody else's hypervisor. Raises HostError if ``vsock`` is demanded and there is none.
    """
    if setting == "virtio-serial":
        return Transport("virtio-serial", "virtio-serial was asked for.")
    if setting not in ("auto", "vsock"):
        raise ConfigError(f"Unknown transport {setting!r}.", "Use auto, vsock or virtio-serial.")
    try:
        os.close(os.open(_VSOCK_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if setting == "vsock":
            raise HostError(
                f"vsock was asked for, but {_VSOCK_DEVICE} cannot be opened: {error.strerror}.",
                "Load the kernel module vhost_vsock for this user, or set c.PoolConfig.transport to 'auto'.",
            ) from None
        return Transport("virtio-serial", f"{_VSOCK_DEVICE} cannot be opened ({error.strerror}).")
    return Transport("vsock", f"{_VSOCK_DEVICE} can be opened.")
