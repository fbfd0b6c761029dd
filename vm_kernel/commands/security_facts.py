"""What ``vm-kernel doctor --security`` looks at: read from the host, judged in ``security_checklist``."""

from __future__ import annotations

import os
import platform
import pwd
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vm_kernel import paths
from vm_kernel.config import PoolConfig
from vm_kernel.errors import PoolError
from vm_kernel.pool import scope
from vm_kernel.vm.process import qemus_of

_CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Swap:
    """One of the host's swap areas. encrypted: None if that cannot be told."""

    name: str
    encrypted: bool | None


@dataclass(frozen=True)
class Qemu:
    """A running QEMU of the pool, by /proc/<pid>/status."""

    pid: int
    uid: int
    seccomp: str
    no_new_privileges: str
    effective_capabilities: str


@dataclass(frozen=True)
class Bounds:
    """What a control group lets the service and its VMs take: as written there, the least of all levels; "" for none.

    version: 2, 1, or 0 if there are none. running: whether it is the service's own; else whoever asked would start it,
    scope: in one that systemd makes for it.
    """

    version: int = 0
    memory: str = ""
    cpu: str = ""
    tasks: str = ""
    running: bool = False
    scope: bool = False


@dataclass(frozen=True)
class Facts:
    """All that is judged. "" for what this host does not say."""

    accelerator: str = ""
    accelerator_reason: str = ""
    is_guest: bool = False
    kernel: str = ""
    qemu: str = ""
    libvirt: str = ""
    smt: str = ""
    ksm: str = ""
    nested: str = ""
    ptrace_scope: str = ""
    core_pattern: str = ""
    microcode: str = ""
    seccomp_actions: str = ""
    user: str = ""
    uid: int = -1
    sharing: list[str] = field(default_factory=list)
    vulnerabilities: dict[str, str] = field(default_factory=dict)
    swaps: list[Swap] = field(default_factory=list)
    qemus: list[Qemu] = field(default_factory=list)
    bounds: Bounds = field(default_factory=Bounds)


def collect(config: PoolConfig) -> Facts:
    """Read them. Takes some seconds where a guest is run to see whether KVM works. Raises HostError, ImageError."""
    from vm_kernel.commands import doctor
    from vm_kernel.vm import host

    accelerator = doctor.accelerator(config)
    uid = os.geteuid() or _uid(config.user)
    cpu = Path("/proc/cpuinfo").read_text()
    microcode = re.search(r"^microcode\s*:\s*(\S+)", cpu, re.MULTILINE)
    return Facts(
        accelerator="kvm" if accelerator.summary.startswith("KVM") else "tcg",
        accelerator_reason=accelerator.summary,
        is_guest=re.search(r"^flags\s*:.*\bhypervisor\b", cpu, re.MULTILINE) is not None,
        kernel=platform.release(),
        sharing=[profile.name for profile in config.all_profiles() if profile.share_memory],
        qemu=host.qemu_version(),
        libvirt=host.libvirt_version(),
        smt=_read(_CPU / "smt" / "active"),
        ksm=_read(Path("/sys/kernel/mm/ksm/run")),
        nested=next((value for vendor in ("intel", "amd") if (value := _nested(vendor))), ""),
        ptrace_scope=_read(Path("/proc/sys/kernel/yama/ptrace_scope")),
        core_pattern=_read(Path("/proc/sys/kernel/core_pattern")),
        microcode=microcode[1] if microcode else "",
        seccomp_actions=_read(Path("/proc/sys/kernel/seccomp/actions_avail")),
        user=_name(uid),
        uid=uid,
        vulnerabilities={path.name: _read(path) for path in sorted((_CPU / "vulnerabilities").glob("*"))},
        swaps=list(_swaps(_read(Path("/proc/swaps")))),
        qemus=list(_qemus()),
        bounds=_bounds(),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _nested(vendor: str) -> str:
    return _read(Path(f"/sys/module/kvm_{vendor}/parameters/nested"))


def _uid(user: str) -> int:
    """Of the user that root's service becomes; -1 if there is none yet."""
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return -1


def _name(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _swaps(table: str) -> Iterator[Swap]:
    for line in table.splitlines()[1:]:
        name = line.split()[0]
        device = Path("/sys/class/block", Path(name).resolve().name)
        if "zram" in name:
            yield Swap(name, True)  # memory, too
        elif device.exists():
            yield Swap(name, _read(device / "dm" / "uuid").startswith("CRYPT-"))
        else:
            yield Swap(name, None)  # a file: its disk may be encrypted


def _qemus() -> Iterator[Qemu]:
    for pid in qemus_of(paths.run_dir() / "lv", any_user=True):
        fields = dict(line.split(":", 1) for line in _read(Path(f"/proc/{pid}/status")).splitlines())
        if fields:
            yield Qemu(
                pid,
                int(fields["Uid"].split()[1]),
                fields.get("Seccomp", "").strip(),
                fields.get("NoNewPrivs", "").strip(),
                fields["CapEff"].strip(),
            )


def _bounds() -> Bounds:
    """Of the running service's control group; else of the one in which it would be started."""
    from vm_kernel.pool.client import PoolConnection

    pid, running = "self", False
    with suppress(PoolError):
        connection = PoolConnection.open(start_service=False)
        try:
            pid, running = str(connection.status()["pid"]), True
        finally:
            connection.close()
    if not running and scope.words():
        return Bounds(2, scope.MEMORY_MAX, f"weight {scope.CPU_WEIGHT}", str(scope.TASKS_MAX), scope=True)
    groups = dict(line.split(":", 2)[1:] for line in _read(Path(f"/proc/{pid}/cgroup")).splitlines())
    unified = Path("/sys/fs/cgroup")
    if (unified / "cgroup.controllers").exists():
        levels = _levels(unified, groups.get("", "/"))
        memory, cpu, tasks = (_least(levels, f"{name}.max") for name in ("memory", "cpu", "pids"))
        return Bounds(2, memory, cpu or _low_weight(levels), tasks, running)
    if not unified.is_dir() or not groups:
        return Bounds(running=running)
    found = {}
    for controller, file in (("memory", "memory.limit_in_bytes"), ("cpu", "cpu.cfs_quota_us"), ("pids", "pids.max")):
        group = next((path for names, path in groups.items() if controller in names.split(",")), "/")
        found[controller] = _least(_levels(unified / controller, group), file)
    return Bounds(1, found["memory"], found["cpu"], found["pids"], running)


def _levels(root: Path, group: str) -> list[Path]:
    """The group and those above it, up to ``root``."""
    path = root / group.lstrip("/")
    return [level for level in (path, *path.parents) if level.is_relative_to(root)]


def _low_weight(levels: list[Path]) -> str:
    """The least share of the processors that is less than others have, who have 100 (cgroup-v2.rst); "" if none is."""
    weights = [int(text) for level in levels if (text := _read(level / "cpu.weight").strip()).isdigit()]
    return f"weight {min(weights)}" if min(weights, default=100) < 100 else ""


def _least(levels: list[Path], file: str) -> str:
    """The tightest limit, as it is written; "" if there is none. version 1 says "none" by -1 or by a huge number."""
    found = []
    for level in levels:
        words = _read(level / file).split()
        if words and words[0].isdigit() and int(words[0]) < 1 << 60:
            found.append((int(words[0]) / int(words[1] if len(words) > 1 else 1), " ".join(words)))
    return min(found)[1] if found else ""
