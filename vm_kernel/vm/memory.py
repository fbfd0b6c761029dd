"""How much memory of the host a VM has for itself, and how much the host has left. Not here: who may have how much."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def unique_memory(pid: int) -> int:
    """Bytes of memory that only the QEMU ``pid`` has: what destroying it would give back to the host.

    These are its anonymous pages (QEMU's heap, its translation cache, and the guest pages that the clone has
    changed) in RAM or swapped out. Pages of the golden image do not count, even if one clone alone maps them.
    Raises ProcessLookupError if the process has gone. The pool's status calls it for every VM.
    """
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    kib = {field.rstrip(":"): int(value) for field, value, *_ in map(str.split, rollup.splitlines()[1:])}
    return (kib["Anonymous"] + kib["Swap"]) * 1024


def rough_unique_memory(pid: int) -> int:
    """The same from the kernel's counters: a hundred times as quick, and wrong by some hundred kB. 0 if it has gone."""
    with suppress(OSError):
        facts = _kib(Path(f"/proc/{pid}/status"))
        return (facts.get("RssAnon", 0) + facts.get("VmSwap", 0)) * 1024
    return 0


def available_mib() -> int:
    """MiB of memory that new processes of ours can have: the host's, or less if our cgroup is limited to less."""
    return min(host_available_mib(), _cgroup_room_mib())


def host_available_mib() -> int:
    """MiB of memory that the host could still give to programs, whatever our cgroup may have; 0 if it does not say."""
    return _kib(Path("/proc/meminfo")).get("MemAvailable", 0) // 1024


def _kib(file: Path) -> dict[str, int]:
    """The lines "name: number kB" of a file in /proc."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1:] == ["kB"]}


def _cgroup_room_mib() -> int:
    """What the limits of our cgroup (version 2) and of those above it leave. Cached files can be dropped: not used."""
    room = 1 << 40
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
        root = Path("/sys/fs/cgroup")
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            with suppress(OSError, ValueError):
                limit = int((folder / "memory.max").read_text())
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / "memory.current").read_text()) - int(stat["inactive_file"])
                room = min(room, (limit - used) >> 20)
    return room
