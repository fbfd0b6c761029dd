"""What ``vm-kernel run`` wants of the pool: wait until it has a warm VM, and tell which VM a kernel got.

Waiting here, and not in the first cell, shows how long a golden snapshot takes and keeps the cells' times honest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vm_kernel.errors import GoldenError, PoolError, PoolUnavailable, UnknownProfile

if TYPE_CHECKING:
    from rich.console import Console

    from vm_kernel.pool.client import PoolConnection

POLL_S = 0.05


@dataclass(frozen=True)
class Stage:
    """A part of the work and how long it took."""

    name: str
    seconds: float
    note: str = ""


def profile_of(kernel: str) -> str | None:
    """The pool's profile that a Jupyter kernel draws its VMs from; None if it is not a kernel of ours, or missing."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        argv: list[str] = KernelSpecManager().get_kernel_spec(kernel).argv
    except NoSuchKernel:
        return None
    if "vm_kernel" not in argv:
        return None
    return argv[argv.index("--profile") + 1] if "--profile" in argv[:-1] else "default"


def wait_for_warm(profile: str, console: Console) -> list[Stage]:
    """Start the pool service if need be and wait until a VM of ``profile`` is warm (or none is to be kept warm).

    Raises GoldenError if the profile is broken, UnknownProfile if the service does not have it, PoolUnavailable
    if the service does not start.
    """
    with console.status("starting the pool service") as line:
        connection, opened = _open()
        try:
            golden_s, clone_s, note = _wait(connection, profile, line.update)
        finally:
            connection.close()
    return [opened, Stage("golden snapshot", golden_s, note), Stage("first warm VM", clone_s)]


def _open() -> tuple[PoolConnection, Stage]:
    from vm_kernel.pool.client import PoolConnection

    begin = time.monotonic()
    try:
        connection, note = PoolConnection.open(start_service=False), "was running"
    except PoolUnavailable:
        connection, note = PoolConnection.open(start_service=True), "started"
    return connection, Stage("pool service", time.monotonic() - begin, note)


def _wait(connection: PoolConnection, profile: str, tell: Any) -> tuple[float, float, str]:
    begin = golden_ready = time.monotonic()
    note = "was ready"
    while True:
        facts = _profile(connection.status(), profile)
        now = time.monotonic()
        if facts["state"] == "broken":
            raise GoldenError(f"No VM of profile {profile!r} can be made: {facts['detail']}", "See 'vm-kernel doctor'.")
        if facts["state"] == "building":
            golden_ready, note = now, facts["detail"] or "built"
            tell(f"golden snapshot: {note}")
        elif facts["warm"] or not facts["min_warm"] or facts["leased"] >= facts["max_vms"]:
            return golden_ready - begin, now - golden_ready, note
        time.sleep(POLL_S)


def _profile(status: dict[str, Any], name: str) -> dict[str, Any]:
    for facts in status["profiles"]:
        if facts["name"] == name:
            found: dict[str, Any] = facts
            return found
    raise UnknownProfile(
        f"The running pool service does not have the profile {name!r}.",
        "If it is newly configured: 'vm-kernel pool stop', and the next session starts the service anew.",
    )


def leased_by(pid: int) -> dict[str, str] | None:
    """The facts of the VM that the kernel process ``pid`` holds, ready to print. None if it holds none."""
    from vm_kernel.pool.client import PoolConnection

    try:
        connection = PoolConnection.open(start_service=False)
        try:
            status = connection.status()
        finally:
            connection.close()
    except PoolError:
        return None
    for vm in status["vms"]:
        if vm["lease"] and vm["lease"]["pid"] == pid:
            return _facts(status, vm)
    return None


def _facts(status: dict[str, Any], vm: dict[str, Any]) -> dict[str, str]:
    profile = _profile(status, vm["profile"])
    acquire = status["acquire_ms"]
    return {
        "VM": f"{vm['name']} (profile {profile['name']}, {profile['memory_mib']} MiB, {profile['vcpus']} vCPU)",
        "image": f"{profile['image']}, golden snapshot {profile['golden_key'][:12]}",
        "accelerator": f"{status['accelerator']['kind']} ({status['accelerator']['reason']})",
        "transport": f"{status['transport']['kind']} ({status['transport']['reason']})",
        "QEMU, libvirt": f"{status['qemu_version']}, {status['libvirt_version']}",
        "acquire": f"p50 {acquire['p50']:.1f} ms of {acquire['count']}",
    }
