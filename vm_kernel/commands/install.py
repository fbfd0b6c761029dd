"""``vm-kernel install``: write the kernelspec. The work is done by kernel/spec.py; this is its command line."""

from __future__ import annotations

import argparse
import sys


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``install`` to the command line."""
    parser = subparsers.add_parser(
        "install",
        help="make the kernel known to Jupyter",
        description="Write the kernelspec, so that JupyterLab, nbclient and others find the kernel.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user (the default)")
    where.add_argument("--sys-prefix", action="store_true", help=f"for this Python environment ({sys.prefix})")
    where.add_argument("--prefix", metavar="DIR", help="below DIR/share/jupyter/kernels")
    parser.add_argument("--name", default="vm-sandbox", help="the kernel's name (default: %(default)s)")
    parser.add_argument("--display-name", help='what launchers show (default: "VM Sandbox")')
    parser.add_argument("--profile", default="default", help="the pool's profile (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Install the kernelspec. Raises ConfigError for a bad name or an unknown profile, HostError if it cannot write."""
    from vm_kernel.config import load_config
    from vm_kernel.kernel import spec

    load_config().pool.profile(args.profile)
    prefix = sys.prefix if args.sys_prefix else args.prefix
    folder = spec.install(
        user=prefix is None,
        prefix=prefix,
        name=args.name,
        display_name=args.display_name,
        profile=None if args.profile == "default" else args.profile,
    )
    print(f"Installed kernel {args.name} in {folder}")
    return 0
