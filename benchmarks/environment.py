"""A place of its own for a run: state, configuration and kernelspecs in a temporary folder, the user's images.

Whoever runs it may have a pool service of their own: that one is left alone (and should be idle).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.samples import OURS, STOCK
from vm_kernel import paths
from vm_kernel.errors import PoolUnavailable
from vm_kernel.kernel.spec import install
from vm_kernel.pool.client import PoolConnection

MIN_WARM = 2
#: a profile that keeps this many VMs warm, to see what an idle one costs
MANY = 10
#: and one for so many sessions at once
CROWD = 50
CONFIG = f"""
c.PoolConfig.min_warm = {MIN_WARM}
c.PoolConfig.max_vms = 12
c.PoolConfig.idle_exit_s = 0
c.PoolConfig.memory_overcommit = 10.0
c.PoolConfig.profiles = {{
    "many": {{"min_warm": {MANY}, "max_vms": {MANY}}},
    "own": {{"min_warm": 1, "max_vms": 3, "share_memory": False}},
    "crowd": {{"min_warm": {CROWD}, "max_vms": {CROWD}}},
}}
"""


@contextmanager
def place(keep_golden: bool = False) -> Iterator[Path]:
    """The folder of this run, in the environment of everything that is started. Stops the pool at the end.

    keep_golden: take golden snapshots from where they are, instead of building this run's own.
    """
    images = paths.images_dir()
    home = Path(tempfile.mkdtemp(prefix="vmk-bench-", dir="/tmp"))
    home.chmod(0o755)
    os.environ["VM_KERNEL_HOME"] = str(home)
    os.environ["VM_KERNEL_IMAGES"] = str(images)
    if not keep_golden:
        os.environ.pop("VM_KERNEL_GOLDEN", None)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        folder = home / name.lower()
        folder.mkdir()
        os.environ[name] = str(folder)
    Path(os.environ["JUPYTER_CONFIG_DIR"], "vm_kernel_config.py").write_text(CONFIG)
    _install_kernels(Path(os.environ["JUPYTER_DATA_DIR"], "kernels"))
    try:
        yield home
    finally:
        stop_pool()
        shutil.rmtree(home, ignore_errors=True)


def _install_kernels(folder: Path) -> None:
    """Ours, and a stock ipykernel that differs in nothing else: the same Python, the same environment."""
    install(name=OURS)
    stock = folder / STOCK
    stock.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    spec = {"argv": argv, "display_name": "stock ipykernel", "language": "python"}
    (stock / "kernel.json").write_text(json.dumps(spec))


def stop_pool() -> None:
    """Stop this run's pool service, if it runs."""
    try:
        connection = PoolConnection.open(start_service=False)
    except PoolUnavailable:
        return
    connection.stop()
    connection.close()


def status() -> dict[str, Any]:
    """The pool's status; starts the service if need be."""
    connection = PoolConnection.open()
    try:
        return connection.status()
    finally:
        connection.close()


def wait_until_quiet(profile: str = "default", timeout_s: float = 300.0) -> dict[str, Any]:
    """Wait until the profile has all its warm VMs and nothing is being made or destroyed. Returns the status.

    Called before each sample, so that one side's refill does not slow the other.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        seen = status()
        (facts,) = (entry for entry in seen["profiles"] if entry["name"] == profile)
        if facts["state"] == "broken":
            raise SystemExit(f"The pool cannot make VMs: {facts['detail']}")
        if facts["warm"] >= facts["min_warm"] and {vm["state"] for vm in seen["vms"]} <= {"warm", "leased"}:
            return seen
        if time.monotonic() > deadline:
            raise SystemExit(f"The pool is not quiet after {timeout_s:.0f} s: {facts}")
        time.sleep(0.2)  # to look is work for the service, too
