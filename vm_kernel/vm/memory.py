"""How much memory of the host a VM has for itself. Not here: limits, or what the host has left."""

from __future__ import annotations

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
