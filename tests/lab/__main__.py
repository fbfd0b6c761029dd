"""``python -m tests.lab [--release trixie] [COMMAND...]``: run the lab's tests, or any command, in a lab host."""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path

from tests.lab import host
from tests.lab.image import RELEASES
from tests.lab.suite import RESULTS, command


def main() -> int:
    """Run it; the exit status is the command's."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--release", choices=RELEASES, default="bookworm", help="Debian's release of the lab host")
    parser.add_argument("--vcpus", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figures", action="store_true", help="measure ratios to stock ipykernel after the tests")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="instead of the tests")
    args = parser.parse_args()
    say = partial(print, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that its files go, too
    wanted = (lambda _: args.command) if args.command else partial(command, figures=args.figures)
    done = host.run(wanted, args.results, release=args.release, vcpus=args.vcpus, say=say)
    print("seconds:", done.seconds, "results:", done.results)
    return done.status


if __name__ == "__main__":
    sys.exit(main())
