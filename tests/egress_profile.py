"""A pool that has a profile whose VMs may reach an index on this machine, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.conftest import CONFIG, write_config
from vm_kernel import paths
from vm_kernel.pool.client import PoolConnection

#: in a cell: localhost is the host's, although programs ask no proxy for it by themselves
THROUGH_PROXY = "import os; os.environ['no_proxy'] = os.environ['NO_PROXY'] = ''\n"


@contextmanager
def egress_profile(*ports: int, **more: Any) -> Iterator[str]:
    """The profile's name. Entries of ``more`` are further settings of it."""
    allow = [*(f"localhost:{port}" for port in ports), "unresolvable.invalid"]
    profile = {"min_warm": 0, "max_vms": 4, "allow": allow, "allow_private": ["127.0.0.1/32"]} | more
    configure(f"c.PoolConfig.profiles['open'] = {profile!r}")
    try:
        yield "open"
    finally:
        configure("")


def configure(text: str) -> None:
    """Have the running pool service read other settings."""
    write_config(f"{CONFIG}\n{text}")
    connection = PoolConnection.open()
    try:
        connection.reload()
    finally:
        connection.close()


def audited(vm: str) -> list[dict[str, Any]]:
    """The audit log's egress events of a VM."""
    whole = paths.audit_log().read_text().rpartition("\n")[0]  # the last line may be half there
    events = map(json.loads, whole.splitlines())
    return [event for event in events if event["event"] == "egress" and event["vm"] == vm]
