"""Measures file transfers between host and VM, as a program does them with ``box.files``."""

from __future__ import annotations

import os
import time

from benchmarks.environment import wait_until_quiet
from benchmarks.samples import Results
from vm_kernel import SyncSandbox

SIZE = 20_000_000


def measure_files(results: Results, rounds: int) -> None:
    """A file that does not compress, there and back, in one VM; megabytes a second, digests at both ends included."""
    content = os.urandom(SIZE)
    with SyncSandbox() as box:
        box.files.write_file("file", content)  # starts the worker in the VM, and the emulator's cache is cold
        wait_until_quiet()
        for _ in range(rounds):
            begin = time.perf_counter()
            box.files.write_file("file", content)
            put = time.perf_counter()
            returned = box.files.read_file("file")
            got = time.perf_counter()
            if returned != content:
                raise RuntimeError("a file has come back changed")
            results.add("files_put", SIZE / 1e6 / (put - begin))
            results.add("files_get", SIZE / 1e6 / (got - put))
