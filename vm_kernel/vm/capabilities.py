"""Which QEMU and libvirt are supported, and what is made of what this host's QEMU says that it can do.

The version decides one thing only: whether a host is turned away. What differs between those that are supported is
asked of QEMU itself, once in the life of a process, before it runs any VM; it takes some tens of milliseconds.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vm_kernel.errors import HostError
from vm_kernel.vm import host

#: those of Debian 12; everything here is also tried with Debian 13's, QEMU 10.0 and libvirt 11.3
LOWEST_QEMU = (7, 2)
LOWEST_LIBVIRT = (9, 0)

_REINSTALL = "Reinstall the Debian package qemu-system-x86."
_UPGRADE = "Use Debian 12 or newer, or install a newer {package}."
#: what is done with every VM: commands of QMP, and properties of QEMU's object for migration
_COMMANDS = frozenset({"getfd", "migrate-incoming", "query-status", "stop", "cont", "xen-save-devices-state"})
_PROPERTIES = frozenset({"send-configuration"})
_QUESTIONS: tuple[dict[str, Any], ...] = (
    {"execute": "qmp_capabilities"},
    {"execute": "query-commands", "id": "commands"},
    {"execute": "qom-list-properties", "arguments": {"typename": "migration"}, "id": "migration"},
    {"execute": "qom-list-properties", "arguments": {"typename": "memory-backend-file"}, "id": "memory"},
    {"execute": "quit"},
)


@dataclass(frozen=True)
class Capabilities:
    """What this QEMU can do that not every supported one can.

    read_only_memory: map the golden RAM image privately through a descriptor that cannot write (QEMU 8.2 and newer).
    """

    read_only_memory: bool

    @property
    def sentence(self) -> str:
        """For the doctor: what is adapted."""
        way = "read-only" if self.read_only_memory else "for writing, which its seal forbids"
        return f"clones open the memory image {way}"


def of_qemu() -> Capabilities:
    """Of the installed QEMU. Raises HostError if it is missing, too old, or lacks what every VM needs.

    Called before libvirt is opened, and by the doctor. Not as root: it starts QEMU. The answer is remembered for as
    long as QEMU's program stays the same.
    """
    check_version("QEMU", host.qemu_version(), LOWEST_QEMU, "qemu-system-x86")
    binary = host.qemu_binary()
    return _asked(binary, binary.stat().st_ctime_ns)


def check_libvirt() -> str:
    """libvirt's version. Raises HostError if it is missing or too old."""
    version = host.libvirt_version()
    check_version("libvirt", version, LOWEST_LIBVIRT, "libvirt-daemon-driver-qemu and libvirt0")
    return version


def check_version(name: str, version: str, lowest: tuple[int, int], package: str) -> None:
    """Raises HostError if ``version``, such as 7.2.22, is below ``lowest``."""
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < lowest:
        raise HostError(
            f"{name} {version} is too old: VM Sandbox needs {lowest[0]}.{lowest[1]} or newer.",
            _UPGRADE.format(package=package),
        )


def judge(report: Mapping[str, frozenset[str]]) -> Capabilities:
    """From the names that QEMU has listed: its commands, and the properties of "migration" and "memory".

    Raises HostError if one is missing that every VM needs.
    """
    missing = sorted(_COMMANDS - report["commands"]) + sorted(_PROPERTIES - report["migration"])
    if missing:
        raise HostError(
            f"This QEMU lacks what VM Sandbox needs: {', '.join(missing)}.",
            "Use Debian's package qemu-system-x86, of Debian 12 or 13.",
        )
    # "rom" came with the ability to open a file read-only and still have it as RAM
    return Capabilities(read_only_memory={"readonly", "rom"} <= report["memory"])


@lru_cache(maxsize=4)
def _asked(binary: Path, _changed_ns: int) -> Capabilities:
    command = [str(binary), "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio"]
    questions = "\n".join(map(json.dumps, _QUESTIONS))
    try:
        done = subprocess.run(command, input=questions, capture_output=True, text=True, timeout=30, check=True)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        listed = {answer["id"]: answer.get("return", []) for answer in answers if "id" in answer}
        return judge({name: frozenset(entry["name"] for entry in entries) for name, entries in listed.items()})
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise HostError(f"QEMU does not say what it can do: {type(error).__name__}: {error}", _REINSTALL) from error
