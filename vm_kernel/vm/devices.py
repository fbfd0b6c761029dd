"""Why /dev/kvm or /dev/vhost-vsock cannot be used, and the command that mends it.

``look()`` collects what the host says about a device; ``trouble()`` makes a cause and a remedy of that, without looking
at anything else. Not here: whether KVM works once it can be opened (``kvm_probe``).
"""

from __future__ import annotations

import errno
import grp
import os
import platform
import pwd
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

KVM = Path("/dev/kvm")
VSOCK = Path("/dev/vhost-vsock")

#: of a kernel module: in the kernel, or loaded; a file that modprobe would find; not made for this kernel;
#: or this system has no list of modules for the kernel that runs, as in containers
ModuleState = Literal["there", "loadable", "not made", "unknown"]

#: an errno of open() that says that no driver answers to the device, whether or not it has a name in /dev
_NO_DRIVER = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
_MODULES_FILE = "/etc/modules-load.d/vm-kernel.conf"
_MARKS_OF_CONTAINERS = ("/run/systemd/container", "/.dockerenv", "/run/.containerenv")


@dataclass(frozen=True)
class Facts:
    """What there is to know about one device.

    error: errno of opening it, 0 if it opens. module: the one that drives it; empty if no processor has it. group: of
    the device, empty if that is root's or has no right to read and write. user: who wants to use it. member: the user
    database has them in that group, so that only a new login is missing. virtualization: the processor shows svm or
    vmx. guest: this host is a virtual machine itself.
    """

    device: Path
    error: int
    module: str
    module_state: ModuleState
    group: str
    user: str
    member: bool
    container: bool
    virtualization: bool = True
    guest: bool = False
    release: str = "?"


class Trouble(NamedTuple):
    """Why a device cannot be used, as a sentence, and what to do about it."""

    cause: str
    remedy: str


def usable(device: Path) -> Trouble | None:
    """Open the device; None if that works. Called for the user that will run QEMU."""
    facts = look(device)
    return trouble(facts) if facts.error else None


def trouble(facts: Facts) -> Trouble:
    """Why it could not be opened."""
    if facts.error in _NO_DRIVER:
        return _no_driver(facts)
    if facts.error in (errno.EACCES, errno.EPERM):
        return _no_permission(facts)
    return Trouble(
        f"{facts.device} cannot be opened: {os.strerror(facts.error)}.", "See what the kernel says: sudo dmesg."
    )


def _no_driver(facts: Facts) -> Trouble:
    device = facts.device
    missing = f"{device} does not exist" if facts.error == errno.ENOENT else f"Nothing drives {device}"
    if device == KVM and not facts.virtualization and facts.module_state != "there":
        if facts.guest:
            return Trouble(
                f"{missing}: this host is a virtual machine without virtualization of its own (no svm or vmx).",
                "Use a machine or cloud instance with nested virtualization, and switch it on.",
            )
        return Trouble(
            f"{missing}: the processor shows no virtualization (no svm or vmx).",
            "Switch it on in the firmware (BIOS, UEFI): it is called SVM, AMD-V, VT-x or VMX there.",
        )
    if facts.container:
        return Trouble(
            f"{missing} in this container.",
            f"Start the container with --device {device}; on its host: sudo modprobe {facts.module}.",
        )
    if facts.module_state == "loadable":
        also = " If modprobe is refused, switch virtualization on in the firmware (BIOS, UEFI)." * (device == KVM)
        return Trouble(
            f"{missing}: the kernel module {facts.module} is not loaded.",
            f"sudo modprobe {facts.module}; and for every start: "
            f"echo {facts.module} | sudo tee -a {_MODULES_FILE}{also}",
        )
    if facts.module_state == "there":
        return Trouble(f"{missing}, although {facts.module} is loaded.", f"sudo udevadm trigger {device}; or reboot.")
    if facts.module_state == "not made":
        return Trouble(
            f"{missing}: this kernel ({facts.release}) was built without {facts.module}.",
            "Install Debian's generic kernel, linux-image-amd64, and boot it.",
        )
    return Trouble(
        f"{missing}, and there are no modules for this kernel ({facts.release}).",
        f"Boot the kernel that is installed, or one with {facts.module}.",
    )


def _no_permission(facts: Facts) -> Trouble:
    device, group, user = facts.device, facts.group, facts.user
    cause = f"{device} cannot be opened by user {user} ({os.strerror(facts.error)})"
    if user == "root":
        return Trouble(f"{cause}: this container may not use it.", f"Start the container with --device {device}.")
    if group and facts.member:
        return Trouble(
            f"{cause}: this process was started before {user} was in the group {group}.",
            "Log in again; and stop the service that was started before: vm-kernel pool stop.",
        )
    join = f"sudo usermod -aG {group or 'kvm'} {user}; then log in again, and: vm-kernel pool stop."
    if group:
        return Trouble(f"{cause}: it is for the group {group}.", join)
    rule = f'KERNEL=="{device.name}", GROUP="kvm", MODE="0660"'
    return Trouble(
        f"{cause}: it is for root alone.",
        f"sudo chgrp kvm {device}; sudo chmod 660 {device}; {join} "
        f"For every start: echo '{rule}' | sudo tee /etc/udev/rules.d/99-vm-kernel-{device.name}.rules",
    )


# ---- looking


def look(device: Path) -> Facts:
    """The facts of this host, for the user of this process."""
    cpu = Path("/proc/cpuinfo").read_text()
    flags = set(next(iter(re.findall(r"^flags\s*:(.*)$", cpu, re.M)), "").split())
    module = "vhost_vsock" if device == VSOCK else "kvm_amd" if "AuthenticAMD" in cpu or "svm" in flags else "kvm_intel"
    user, group = _user(), _group_of(device)
    return Facts(
        device=device,
        error=_open(device),
        module=module,
        module_state=_module_state(module),
        group=group,
        user=user,
        member=_is_member(user, group),
        container="container" in os.environ or any(Path(mark).exists() for mark in _MARKS_OF_CONTAINERS),
        virtualization=bool({"svm", "vmx"} & flags),
        guest="hypervisor" in flags,
        release=platform.release(),
    )


def _open(device: Path) -> int:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _group_of(device: Path) -> str:
    with suppress(OSError, KeyError):
        facts = device.stat()
        if facts.st_gid and facts.st_mode & 0o060 == 0o060:
            return grp.getgrgid(facts.st_gid).gr_name
    return ""


def _is_member(user: str, group: str) -> bool:
    with suppress(KeyError):
        entry = grp.getgrnam(group)
        return user in entry.gr_mem or pwd.getpwnam(user).pw_gid == entry.gr_gid
    return False


def _module_state(module: str) -> ModuleState:
    if Path("/sys/module", module).exists():
        return "there"
    folder = Path("/lib/modules", platform.release())
    for name, state in (("modules.builtin", "there"), ("modules.dep", "loadable")):
        with suppress(OSError):
            if any(_named(line, module) for line in (folder / name).read_text().splitlines()):
                return state  # type: ignore[return-value]
    return "not made" if (folder / "modules.dep").exists() else "unknown"


def _named(line: str, module: str) -> bool:
    """Whether a line of modules.dep ("kernel/…/kvm-amd.ko.xz: …") is that of the module."""
    return line.partition(":")[0].rpartition("/")[2].partition(".")[0].replace("-", "_") == module
