"""What ``vm-kernel run`` wants of the pool: wait until it has a warm VM, and tell which VM a kernel got.

Waiting here, and not in the first cell, shows how long a golden snapshot takes and keeps the cells' times honest.
"""

from __future__ import annotations

import asyncio
import json
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vm_kernel.errors import GoldenError, PoolUnavailable, UnknownProfile

if TYPE_CHECKING:
    from rich.console import Console

    from vm_kernel.pool.client import PoolConnection

#: seconds between two looks at the pool
POLL_S = 0.05
#: seconds that a kernel has to tell which VM it has
ANSWER_S = 10.0


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


@dataclass(frozen=True)
class Pool:
    """The pool service when it had a warm VM: how it got there, and its status then."""

    stages: list[Stage]
    status: dict[str, Any]


def wait_for_warm(profile: str, console: Console) -> Pool:
    """Start the pool service if need be and wait until a VM of ``profile`` is warm (or none is to be kept warm).

    Raises GoldenError if the profile is broken, UnknownProfile if the service does not have it, PoolUnavailable
    if the service does not start.
    """
    with console.status("starting the pool service") as line:
        connection, opened = _open()
        try:
            later, status = _wait(connection, profile, line.update)
        finally:
            connection.close()
    return Pool([opened, *later], status)


def _open() -> tuple[PoolConnection, Stage]:
    from vm_kernel.pool.client import PoolConnection

    begin = time.monotonic()
    try:
        connection, note = PoolConnection.open(start_service=False), "was running"
    except PoolUnavailable:
        connection, note = PoolConnection.open(start_service=True), "started"
    return connection, Stage("pool service", time.monotonic() - begin, note)


def _wait(connection: PoolConnection, profile: str, tell: Callable[[str], None]) -> tuple[list[Stage], dict[str, Any]]:
    begin = golden_ready = time.monotonic()
    note = "was ready"
    while True:
        status = connection.status()
        facts = _profile(status, profile)
        now = time.monotonic()
        if facts["state"] == "broken":
            raise GoldenError(f"No VM of profile {profile!r} can be made: {facts['detail']}", "See `vm-kernel doctor`.")
        if facts["state"] == "building":
            golden_ready = now
            tell(facts["detail"])
            if "loading" in facts["detail"]:
                note = "loaded"
            elif "template" in facts["detail"]:
                note = "built"
        elif facts["warm"] or not facts["min_warm"] or facts["leased"] >= facts["max_vms"]:
            return [Stage("golden snapshot", golden_ready - begin, note), Stage("warm VM", now - golden_ready)], status
        time.sleep(POLL_S)


def _profile(status: dict[str, Any], name: str) -> dict[str, Any]:
    for facts in status["profiles"]:
        if facts["name"] == name:
            found: dict[str, Any] = facts
            return found
    raise UnknownProfile(
        f"The running pool service does not have the profile {name!r}.",
        "If it is newly configured: `vm-kernel pool stop`, and the next session starts the service anew.",
    )


async def vm_of_session(client: Any) -> dict[str, Any] | None:
    """Ask a kernel of ours, between two cells, which VM it has. None if it has none or does not say so in time.

    ``client`` is an AsyncKernelClient whose channels nobody else is reading now.
    """
    facts: dict[str, Any] | None = None
    asked = client.execute("%vm_info --json", store_history=False, allow_stdin=False)
    try:
        async with asyncio.timeout(ANSWER_S):
            while (await client.get_shell_msg())["parent_header"].get("msg_id") != asked:
                pass
            while True:
                message = await client.get_iopub_msg()
                if message["parent_header"].get("msg_id") != asked:
                    continue
                if "data" in message["content"]:
                    facts = json.loads(message["content"]["data"]["text/plain"])
                if message["content"].get("execution_state") == "idle":
                    return facts
    except (TimeoutError, queue.Empty, ValueError):
        return None


def describe(vm: dict[str, Any], status: dict[str, Any]) -> dict[str, str]:
    """A session's VM, ready to print. ``status`` is the pool's."""
    reasons = {name: (status.get(name) or {}).get("reason", "") for name in ("accelerator", "transport")}
    return {
        "VM": f"{vm['name']} (profile {vm['profile']}, {vm['memory_mib']} MiB, {vm['vcpus']} vCPU)",
        "image": f"{vm['image']} {vm['image_digest'][:12]}, golden snapshot {vm['golden_key'][:12]}",
        "accelerator": f"{vm['accelerator']}: {reasons['accelerator']}",
        "transport": f"{vm['transport']}: {reasons['transport']}",
        "QEMU, libvirt": f"{vm['qemu_version']}, {vm['libvirt_version']} ({status['libvirt_uri']})",
    }
