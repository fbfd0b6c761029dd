"""The command ``vm-kernel``: parses arguments, runs one sub-command, turns errors into messages.

The sub-commands live in ``commands/`` (and ``image/cli_image.py``). Exit status: 0 done, 1 an error that we
explain, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from vm_kernel import __version__
from vm_kernel.commands import doctor, install, pool, run
from vm_kernel.errors import VMKernelError
from vm_kernel.image.cli_image import add_image_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit status."""
    args = build_parser().parse_args(argv)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except VMKernelError as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output (head, less) has gone; Python would complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command. Every sub-command sets ``run``, a function of the parsed arguments."""
    parser = argparse.ArgumentParser(
        prog="vm-kernel",
        description="VM Sandbox: a Jupyter kernel whose cells run inside a throw-away virtual machine.",
    )
    parser.add_argument("--version", action="version", version=f"vm-kernel {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    install.add_parser(subparsers)
    add_image_parser(subparsers)
    pool.add_parser(subparsers)
    run.add_parser(subparsers)
    doctor.add_parser(subparsers)
    return parser


def print_error(error: VMKernelError) -> None:
    """Tell the user on stderr what happened and what to do next."""
    print(f"vm-kernel: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  -> {error.hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
