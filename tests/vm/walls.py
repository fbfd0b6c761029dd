"""What the host's kernel says of a QEMU: who it is, what it may do, and what it has open."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: of /proc/<pid>/status: a QEMU of ours has these, whatever its role
WALLED = {
    "CapInh": "0000000000000000",
    "CapPrm": "0000000000000000",
    "CapEff": "0000000000000000",
    "CapAmb": "0000000000000000",
    "Seccomp": "2",
    "NoNewPrivs": "1",
    "CoreDumping": "0",
    "TracerPid": "0",
}


class Limits(NamedTuple):
    """Hard limits of a process."""

    core: str
    file: str
    data: str
    descriptors: str


def status(pid: int) -> dict[str, str]:
    """Of /proc/<pid>/status, by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in lines)}


def limits(pid: int) -> Limits:
    """Of /proc/<pid>/limits."""
    rows = [re.split(r"\s{2,}", line) for line in Path(f"/proc/{pid}/limits").read_text().splitlines()]
    hard = {row[0]: row[2] for row in rows}
    names = ("Max core file size", "Max file size", "Max data size", "Max open files")
    return Limits(*(hard[name] for name in names))


def open_files(pid: int) -> Counter[str]:
    """What it has open: kind or path, with how it is open. Numbers of its own are left out."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            target = re.sub(r"\[\d+\]", "", str(entry.readlink()))
            flags = re.search(r"^flags:\s*(\d+)", Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text(), re.MULTILINE)
            assert flags is not None
            found[f"{target} {('r', 'w', 'rw')[int(flags[1], 8) & 3]}"] += 1
    return found


def mapped_flags(pid: int, mapping: str) -> set[str]:
    """VmFlags of the mapping of that name (see proc(5)): mg can be merged, dd is left out of core dumps."""
    flags: set[str] = set()
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = mapping in line
        elif ours and line.startswith("VmFlags:"):
            flags |= set(line.split()[1:])
    return flags
