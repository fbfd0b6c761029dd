"""What ``vm-kernel pool status`` prints: the service's status as rich tables. Imported only when something is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

#: characters of a line where there is no terminal whose width could be asked
PLAIN_WIDTH = 140


def console() -> Console:
    """For standard output."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def tables(facts: dict[str, Any], between: Iterable[RenderableType] = ()) -> list[RenderableType]:
    """Everything, with something else ``between`` the summary and the tables."""
    return [_summary(facts), *between, _profiles(facts), _vms(facts), *_flags(facts)]


def _summary(facts: dict[str, Any]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    acquire, clone, totals = facts["acquire_ms"], facts["clone_ms"], facts["totals"]
    for name, value in (
        ("service", f"{facts['version']}, pid {facts['pid']}, up {age(facts['uptime_s'])}"),
        ("accelerator", _choice(facts["accelerator"])),
        ("transport", _choice(facts["transport"])),
        ("QEMU, libvirt", f"{facts['qemu_version']}, {facts['libvirt_version']} at {facts['libvirt_uri']}"),
        ("host memory", f"{facts['host_memory_available_mib']} MiB available"),
        ("acquire", _durations(acquire)),
        ("clone", _durations(clone)),
        ("so far", f"{totals['leases']} leases, {totals['clones']} clones, {totals['failures']} failures"),
    ):
        table.add_row(name, value)
    return table


def _profiles(facts: dict[str, Any]) -> RenderableType:
    columns = ("image", "memory_mib", "vcpus", "warm", "leased", "booting", "waiting", "min_warm", "max_vms", "state")
    table = Table("profile", *(column.replace("_", " ") for column in columns), "network")
    for profile in facts["profiles"]:
        cells = [str(profile[column]) for column in columns]
        if profile["detail"]:
            cells[-1] += f": {profile['detail']}"
        allowed = len(profile["allow"])
        table.add_row(profile["name"], *cells, f"{allowed} name{'s' * (allowed > 1)}" if allowed else "none")
    return table


def _vms(facts: dict[str, Any]) -> RenderableType:
    if not facts["vms"]:
        return "no VMs"
    table = Table("VM", "profile", "state", "age", "pid", "memory of its own", "CPU", "cells", "leased by")
    for vm in facts["vms"]:
        memory, lease = vm["unique_memory_mib"], vm["lease"]
        table.add_row(
            vm["name"],
            vm["profile"],
            vm["state"],
            age(vm["age_s"]),
            str(vm["pid"] or ""),
            "" if memory is None else f"{memory:.1f} MiB",
            f"{vm['cpu_s']:.1f} s" if vm.get("cpu_s") is not None else "",
            str(vm["executions"]) if vm.get("executions") is not None else "",
            f"pid {lease['pid']} for {age(lease['since_s'])}" if lease else "",
        )
    return table


def _flags(facts: dict[str, Any]) -> Iterator[str]:
    for vm in facts["vms"]:
        for flag in vm.get("flags") or ():
            yield f"flag: {vm['name']} has {flag['text']}"


def _choice(choice: dict[str, str] | None) -> str:
    return f"{choice['kind']}: {choice['reason']}" if choice else "not decided yet"


def _durations(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_ms(found.get(name))}" for name in ("p50", "p95", "p99")) + f" of {found['count']}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def age(seconds: float) -> str:
    """A duration, in its largest unit."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
