"""``vm-kernel pool start|stop|status|metrics``: talk to the pool service through its client."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from vm_kernel.errors import PoolUnavailable

if TYPE_CHECKING:
    from rich.console import RenderableType


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``pool`` to the command line."""
    parser = subparsers.add_parser("pool", help="start, stop or look at the pool of warm VMs")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    starter = actions.add_parser("start", help="start the service if it is not running")
    starter.set_defaults(run=start)
    stopper = actions.add_parser("stop", help="end every session and VM, then the service")
    stopper.add_argument(
        "--drain", type=float, default=0.0, metavar="S", help="seconds that sessions have to end by themselves first"
    )
    stopper.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds to wait (default: 30)")
    stopper.set_defaults(run=stop)
    reloader = actions.add_parser("reload", help="read the configuration anew; sessions go on")
    reloader.set_defaults(run=reload)
    shower = actions.add_parser("status", help="what the service is doing")
    shower.add_argument("--json", action="store_true", help="for programs")
    shower.set_defaults(run=status)
    meter = actions.add_parser("metrics", help="the service's metrics, as Prometheus gets them")
    meter.set_defaults(run=metrics)


def start(args: argparse.Namespace) -> int:
    """Start the service. Raises PoolUnavailable with the service's own words if it does not come up."""
    from vm_kernel.pool.client import PoolConnection

    connection = PoolConnection.open(start_service=True)
    try:
        facts = connection.status()
    finally:
        connection.close()
    print(f"The pool service runs (pid {facts['pid']}, up {_age(facts['uptime_s'])}).")
    return 0


def stop(args: argparse.Namespace) -> int:
    """Stop the service; that it was not running is no error."""
    from vm_kernel.pool.client import PoolConnection

    try:
        connection = PoolConnection.open(start_service=False)
    except PoolUnavailable:
        print("The pool service is not running.")
        return 0
    try:
        connection.stop(args.timeout, args.drain)
    finally:
        connection.close()
    print("The pool service has stopped; no VM is left.")
    return 0


def reload(args: argparse.Namespace) -> int:
    """Have the service read its configuration. Raises ConfigError or ImageError; the old one stays in force then."""
    from vm_kernel.pool.client import PoolConnection

    connection = PoolConnection.open(start_service=False)
    try:
        changes = connection.reload()
    finally:
        connection.close()
    for change in changes["changed"]:
        print(change)
    if changes["at_next_start"]:
        print(f"In force only after `vm-kernel pool stop`: {', '.join(changes['at_next_start'])}.")
    if not changes["changed"] and not changes["at_next_start"]:
        print("Nothing has changed.")
    return 0


def status(args: argparse.Namespace) -> int:
    """Print the service's status. Raises PoolUnavailable if it is not running."""
    from vm_kernel.pool.client import PoolConnection

    connection = PoolConnection.open(start_service=False)
    try:
        facts = connection.status()
    finally:
        connection.close()
    if args.json:
        facts.pop("event", None)
        print(json.dumps(facts, indent=2))
        return 0
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for part in (_summary(facts), _profiles(facts), _vms(facts)):
        console.print(part)
    return 0


def metrics(args: argparse.Namespace) -> int:
    """Print the service's metrics. Raises PoolUnavailable if it is not running."""
    from vm_kernel.pool.client import PoolConnection

    connection = PoolConnection.open(start_service=False)
    try:
        print(connection.metrics(), end="")
    finally:
        connection.close()
    return 0


def _summary(facts: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    acquire, clone, totals = facts["acquire_ms"], facts["clone_ms"], facts["totals"]
    for name, value in (
        ("service", f"{facts['version']}, pid {facts['pid']}, up {_age(facts['uptime_s'])}"),
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
    from rich.table import Table

    columns = ("image", "memory_mib", "vcpus", "warm", "leased", "booting", "waiting", "min_warm", "max_vms", "state")
    table = Table("profile", *(column.replace("_", " ") for column in columns))
    for profile in facts["profiles"]:
        cells = [str(profile[column]) for column in columns]
        if profile["detail"]:
            cells[-1] += f": {profile['detail']}"
        table.add_row(profile["name"], *cells)
    return table


def _vms(facts: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    if not facts["vms"]:
        return "no VMs"
    table = Table("VM", "profile", "state", "age", "pid", "memory of its own", "leased by")
    for vm in facts["vms"]:
        memory, lease = vm["unique_memory_mib"], vm["lease"]
        table.add_row(
            vm["name"],
            vm["profile"],
            vm["state"],
            _age(vm["age_s"]),
            str(vm["pid"] or ""),
            "" if memory is None else f"{memory:.1f} MiB",
            f"pid {lease['pid']} for {_age(lease['since_s'])}" if lease else "",
        )
    return table


def _choice(choice: dict[str, str] | None) -> str:
    return f"{choice['kind']}: {choice['reason']}" if choice else "not decided yet"


def _durations(found: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_ms(found.get(name))}" for name in ("p50", "p95", "p99")) + f" of {found['count']}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
