"""What this host can do: QEMU, libvirt, KVM, vsock. KVM is tried by running a guest, see ``kvm_probe``.

Not here: why a device cannot be opened (``devices``), and what this QEMU can do (``capabilities``).
"""

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
from vm_kernel.vm import devices
from vm_kernel.vm.kvm_probe import probe_kvm
from vm_kernel.vm.spec import AcceleratorKind, TransportKind

_QEMU = "qemu-system-x86_64"
_NOT_A_BOUNDARY = "VMs run under TCG: functional, but slower, and not a security boundary."


@dataclass(frozen=True)
class Accelerator:
    """Which accelerator VMs use, a sentence that says why, and what to do to have a better one."""

    kind: AcceleratorKind
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Transport:
    """How the host talks to the guest agent, a sentence that says why, and what to do to have a better one."""

    kind: TransportKind
    reason: str
    hint: str = ""


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
    remembers the answer until something changes that it depends on (see _kvm_facts).
    Raises HostError if ``kvm`` is demanded and does not run. The pool service calls it once, when it starts.
    """
    if setting == "tcg":
        return Accelerator("tcg", f"TCG was asked for. {_NOT_A_BOUNDARY}", "Set c.PoolConfig.accelerator = 'auto'.")
    if setting not in ("auto", "kvm"):
        raise ConfigError(f"Unknown accelerator {setting!r}.", "Use auto, kvm or tcg.")
    works, reason, hint = _kvm_works(cache_file, kernel)
    if works:
        return Accelerator("kvm", reason)
    if setting == "kvm":
        raise HostError(
            f"KVM was asked for, but cannot be used: {reason}", f"{hint} Or set c.PoolConfig.accelerator = 'auto'."
        )
    return Accelerator("tcg", f"{reason} {_NOT_A_BOUNDARY}", hint)


def _kvm_works(cache_file: Path, kernel: Path) -> tuple[bool, str, str]:
    """Whether it does, a sentence about it, and what to do if not."""
    if trouble := devices.usable(devices.KVM):
        return False, trouble.cause, trouble.remedy
    facts = _kvm_facts(kernel)
    found = _remembered(cache_file, facts)
    if found is None:
        found = probe_kvm(qemu_binary(), kernel)
        _remember(cache_file, facts, found)
    works, reason = found
    return (
        works,
        reason,
        "" if works else "Use a machine whose KVM can run Linux guests.",
    )


def _kvm_facts(kernel: Path) -> dict[str, str]:
    """What the answer depends on: of the host kernel, QEMU, processor, device, modules; and the kernel that is run."""
    device = devices.KVM.stat()
    parameters = sorted(Path("/sys/module").glob("kvm*/parameters/*"))
    return {
        "kernel": platform.release(),
        "host": platform.version(),
        "qemu": qemu_build(),
        "cpu": cpu_model(),
        "device": f"{device.st_rdev} {device.st_uid} {device.st_gid} {device.st_mode:o}",
        "modules": " ".join(f"{path.parts[3]}.{path.name}={_first_line(path)}" for path in parameters),
        "guest": f"{kernel.stat().st_size} {kernel.stat().st_mtime_ns}" if kernel.exists() else "",
    }


def _first_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:  # some are for root
        return "?"


def _remembered(cache_file: Path, facts: dict[str, str]) -> tuple[bool, str] | None:
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        remembered = json.loads(cache_file.read_text())
        if remembered["facts"] == facts and isinstance(remembered["works"], bool):
            return remembered["works"], str(remembered["reason"])
    return None


def _remember(cache_file: Path, facts: dict[str, str], found: tuple[bool, str]) -> None:
    """If that fails, the next start tries again."""
    works, reason = found
    draft = cache_file.with_suffix(f".{os.getpid()}")
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft.write_text(json.dumps({"facts": facts, "works": works, "reason": reason}, indent=1))
        draft.replace(cache_file)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


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
    trouble = devices.usable(devices.VSOCK)
    if trouble is None:
        return Transport("vsock", f"{devices.VSOCK} can be opened.")
    if setting == "vsock":
        raise HostError(
            f"vsock was asked for, but cannot be used: {trouble.cause}",
            f"{trouble.remedy} Or set c.PoolConfig.transport = 'auto'.",
        )
    return Transport("virtio-serial", trouble.cause, trouble.remedy)
