"""A session beside a hostile one: it runs trivial cells, and says how long each took.

``python -m tests.hostile.neighbour CONNECTION_FILE``: one line a cell on stdout, "<monotonic seconds at its end>
<milliseconds>". A process of its own, so that what its parent does with an attacker's output does not slow it down.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient

#: between two cells: a person or a program that thinks
PAUSE_S = 0.05
TIMEOUT_S = 120.0


class Neighbour:
    """What has been measured so far. ``log`` is the file that the process writes."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def between(self, begin: float, end: float) -> list[float]:
        """Milliseconds of the cells that ended in that span of time.monotonic()."""
        rows = [line.split() for line in self._log.read_text().splitlines() if line.count(" ") == 1]
        return [float(ms) for at, ms in rows if begin <= float(at) <= end]


@contextmanager
def neighbour(connection_file: str, log: Path) -> Iterator[Neighbour]:
    """One for the kernel of that connection file, measuring until the block ends."""
    with log.open("wb") as output:
        command = [sys.executable, "-m", "tests.hostile.neighbour", connection_file]
        process = subprocess.Popen(command, stdout=output, cwd=Path(__file__).parents[2])
        try:
            yield Neighbour(log)
        finally:
            process.terminate()
            process.wait()


def percentile(values: list[float], percent: int) -> float:
    """The nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


def summary(values: list[float]) -> str:
    """For people."""
    return f"p50 {statistics.median(values):.0f} ms, p95 {percentile(values, 95):.0f} ms of {len(values)}"


def main() -> None:
    """Measure until killed."""
    client = BlockingKernelClient(connection_file=sys.argv[1])
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(timeout=TIMEOUT_S)
    while True:
        begin = time.monotonic()
        client.execute_interactive("1 + 1", timeout=TIMEOUT_S, output_hook=lambda _: None)
        end = time.monotonic()
        print(f"{end:.4f} {1000 * (end - begin):.2f}", flush=True)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
