"""``vm-kernel pool …``: talk to the pool service through its client."""

from __future__ import annotations

import argparse
import json

from vm_kernel.commands import install_service
from vm_kernel.errors import PoolUnavailable


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
    how = shower.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="for programs")
    how.add_argument("--watch", action="store_true", help="again and again, with the last minutes; Ctrl-C ends it")
    shower.add_argument("--interval", type=_interval, default=2.0, metavar="S", help="seconds between two (default: 2)")
    shower.set_defaults(run=status)
    meter = actions.add_parser("metrics", help="the service's metrics, as Prometheus gets them")
    meter.set_defaults(run=metrics)
    install_service.add_parser(actions)


def _interval(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError("between 0.1 and 3600 seconds")
    return value


def start(args: argparse.Namespace) -> int:
    """Start the service. Raises PoolUnavailable with the service's own words if it does not come up."""
    from vm_kernel.pool.client import PoolConnection

    connection = PoolConnection.open(start_service=True)
    try:
        facts = connection.status()
    finally:
        connection.close()
    from vm_kernel.commands.pool_tables import age

    print(f"The pool service runs (pid {facts['pid']}, up {age(facts['uptime_s'])}).")
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

    if args.watch:
        from vm_kernel.commands.watch import watch

        return watch(args.interval)
    connection = PoolConnection.open(start_service=False)
    try:
        facts = connection.status()
    finally:
        connection.close()
    if args.json:
        facts.pop("event", None)
        print(json.dumps(facts, indent=2))
        return 0
    from vm_kernel.commands.pool_tables import console, tables

    console().print(*tables(facts), sep="\n")
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
