"""The systemd units of the pool service: their text, and where they belong. It writes nothing."""

from __future__ import annotations

import grp
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from vm_kernel import paths
from vm_kernel.errors import ConfigError
from vm_kernel.pool.scope import CPU_WEIGHT, MEMORY_MAX, SLICE, TASKS_MAX

SERVICE = "vm-kernel-pool.service"

_TEMPLATES = Path(__file__).parents[1] / "systemd"
_DEVICES = (Path("/dev/kvm"), Path("/dev/vhost-vsock"))
_SIZE = re.compile(r"(\d+(\.\d+)?[KMGT]?|\d+(\.\d+)?%|infinity)")
_QUOTA = re.compile(r"\d+(\.\d+)?%")


@dataclass(frozen=True)
class Limits:
    """What the slice may take. In systemd's words; cpu_quota: "" for no quota, 200% for two processors' time."""

    memory_max: str = MEMORY_MAX
    cpu_quota: str = ""
    tasks_max: int = TASKS_MAX

    def check(self) -> None:
        """Raises ConfigError if systemd would not take them."""
        if not _SIZE.fullmatch(self.memory_max):
            raise ConfigError(
                f"{self.memory_max!r} is no amount of memory.", "Give one such as 16G, 75% or infinity to --memory-max."
            )
        if self.cpu_quota and not _QUOTA.fullmatch(self.cpu_quota):
            raise ConfigError(f"{self.cpu_quota!r} is no share of CPU time.", "Give one such as 400% to --cpu-quota.")
        if self.tasks_max < 64:
            raise ConfigError(f"{self.tasks_max} tasks are too few for one VM.", "Give more to --tasks-max.")


def folder(system: bool) -> Path:
    """Where an administrator's, or this user's, units are."""
    if system:
        return Path("/etc/systemd/system")
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "systemd" / "user"


def texts(system: bool, limits: Limits, user: str) -> dict[str, str]:
    """The units' text by name. ``user``: as whom the system's service runs. Raises ConfigError."""
    limits.check()
    writable = [paths.home(), paths.run_dir(), paths.golden_dir()]
    in_tmp = any(path.is_relative_to("/tmp") or path.is_relative_to("/var/tmp") for path in writable)
    values = {
        "PYTHON": _word(sys.executable),
        "USER": user,
        "GROUPS": _groups(),
        "ENVIRONMENT": "\n".join(_environment()),
        "WRITABLE": " ".join(dict.fromkeys(_word(f"-{path}") for path in writable)),
        "PRIVATE_TMP": "no" if in_tmp else "yes",
        "MEMORY_MAX": limits.memory_max,
        "TASKS_MAX": str(limits.tasks_max),
        "CPU_WEIGHT": str(CPU_WEIGHT),
        "CPU_QUOTA": f"CPUQuota={limits.cpu_quota}" if limits.cpu_quota else "",
    }
    return {
        SERVICE: _filled("system.service" if system else "user.service", values),
        SLICE: _filled("vm-kernel.slice", values),
    }


def _filled(template: str, values: dict[str, str]) -> str:
    text = (_TEMPLATES / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@\n" if not value else f"@{name}@", value)
    return text


def _environment() -> list[str]:
    """The service has the same state as whoever installs it."""
    settings = {"VM_KERNEL_HOME": str(paths.home())}
    settings |= {name: os.environ[name] for name in ("VM_KERNEL_IMAGES", "VM_KERNEL_GOLDEN") if os.environ.get(name)}
    return [f"Environment={_word(f'{name}={value}')}" for name, value in settings.items()]


def _groups() -> str:
    """The groups that may use the devices of this host: a unit that names one that does not exist would not start."""
    found = {device.stat().st_gid for device in _DEVICES if device.exists()} - {0}
    names = sorted(grp.getgrgid(gid).gr_name for gid in found)
    return f"SupplementaryGroups={' '.join(names)}" if names else ""


def _word(text: str) -> str:
    """One word of a unit: percent signs and dollars have a meaning there, and so has white space."""
    if any(ord(character) < 32 for character in text):
        raise ConfigError(f"{text!r} cannot be in a unit of systemd.", "Use a folder with an ordinary name.")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if shlex.quote(text) != text else escaped
