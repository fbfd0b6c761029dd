"""``python -m tests.fuzz TARGET``: coverage-guided fuzzing of one target with atheris; see README.md here.

Ends with status 0 when the time is up, and not otherwise: then the input that did it is in ``build/fuzz``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
#: bytes of an input; limits of the targets are below
MAX_INPUT = 16384


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--list", action="store_true", help="the names of all targets")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--artifacts", type=Path, default=Path("build/fuzz"), help="where a crashing input is saved")
    parser.add_argument("--grow", action="store_true", help="add what is new to the corpus of the repository")
    parser.add_argument("--plant", action="store_true", help="with a bug, to see that it is found")
    parser.add_argument("--input", type=Path, help="only try this one, such as one that has crashed")
    options = parser.parse_args()

    import atheris

    with atheris.instrument_imports(include=["guest_agent", "vm_kernel"]):
        from tests.fuzz import targets
    if options.list or options.target is None:
        print("\n".join(targets.TARGETS))
        return
    target = targets.TARGETS[options.target]
    if options.plant:
        targets.PLANTED[options.target]()
    if options.input:
        target(options.input.read_bytes())
        return
    # it ends without tidying up, so what it finds new is kept here until the next time
    scratch = options.artifacts.resolve() / f"scratch-{options.target}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    corpus = str(HERE / "corpus" / options.target)
    arguments = [
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        f"-max_len={MAX_INPUT}",
        f"-artifact_prefix={options.artifacts.resolve()}/{options.target}-",
        f"-dict={HERE / 'tokens.dict'}",
        "-timeout=20",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        "-verbosity=0",
        # the first is where new inputs go
        *([corpus] if options.grow else [str(scratch), corpus]),
    ]
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
