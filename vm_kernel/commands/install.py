"""``vm-kernel install``: write the kernelspec. The work is done by kernel/spec.py; this is its command line."""

from __future__ import annotations

import argparse
import sys

from vm_kernel.errors import ConfigError


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``install`` to the command line."""
    parser = subparsers.add_parser(
        "install",
        help="make the kernel known to Jupyter",
        description="Write the kernelspec, so that JupyterLab, nbclient and others find the kernel. Each profile of "
        "the pool (its image, memory and CPUs) can have a kernel of its own.",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user (the default)")
    where.add_argument("--sys-prefix", action="store_true", help=f"for this Python environment ({sys.prefix})")
    where.add_argument("--prefix", metavar="DIR", help="below DIR/share/jupyter/kernels")
    parser.add_argument("--name", help="the kernel's name (default: vm-sandbox, or vm-sandbox-PROFILE)")
    parser.add_argument("--display-name", help='what launchers show (default: "VM Sandbox", or "VM Sandbox (PROFILE)")')
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--profile", default="default", help="the pool's profile (default: %(default)s)")
    which.add_argument("--all-profiles", action="store_true", help="a kernel for every configured profile")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Install the kernelspecs. Raises ConfigError for a bad name or profile, HostError if it cannot write."""
    from vm_kernel.config import load_config

    config = load_config().pool
    if not args.all_profiles:
        _install(config.profile(args.profile).name, args)
        return 0
    if args.name or args.display_name:
        raise ConfigError(
            "With --all-profiles the kernels have the names of their profiles.",
            "Leave out --name and --display-name, or install one profile at a time.",
        )
    for profile in config.all_profiles():
        _install(profile.name, args)
    return 0


def _install(profile: str, args: argparse.Namespace) -> None:
    """One kernelspec. Only the default profile's has the name vm-sandbox: no other replaces it by accident."""
    from vm_kernel.kernel import spec

    own = profile != "default"
    name = args.name or (f"{spec.KERNEL_NAME}-{profile}" if own else spec.KERNEL_NAME)
    prefix = sys.prefix if args.sys_prefix else args.prefix
    folder = spec.install(
        user=prefix is None,
        prefix=prefix,
        name=name,
        display_name=args.display_name,
        profile=profile if own else None,
    )
    print(f"Installed kernel {name} in {folder}")
