"""A pool service at rest: what it has then of processes, descriptors and files, and that it has no more afterwards."""

from __future__ import annotations

import re
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import qemus, wait_until
from tests.guest_session import GuestSession
from vm_kernel import paths
from vm_kernel.errors import PoolError, VMKernelError
from vm_kernel.pool.client import Lease, PoolConnection

#: emulated VMs on a busy machine take their time
TIMEOUT_S = 180.0


class Rest(NamedTuple):
    """What a service has while nobody uses it."""

    pid: int
    descriptors: Counter[str]


def status() -> dict[str, Any]:
    """What the service says of itself."""
    with closing(PoolConnection.open()) as connection:
        return connection.status()


def profile(name: str = "default") -> dict[str, Any]:
    """What the service says of one profile."""
    return next(row for row in status()["profiles"] if row["name"] == name)


def vms(state: str) -> dict[str, int]:
    """Process ids of the VMs in that state, by name; 0 for one that has no process yet."""
    return {vm["name"]: vm["pid"] or 0 for vm in status()["vms"] if vm["state"] == state}


def shells(home: Path) -> list[int]:
    """Process ids of the default profile's prepared QEMUs: those that are not VMs, and have its memory."""
    known = {vm["pid"] for vm in status()["vms"]}
    memory = f",size={profile()['memory_mib']}M,"
    own = (process for process in qemus(home) if any(memory in word for word in process.info["cmdline"]))
    return [process.pid for process in own if process.pid not in known]


def take_until_it_fails(connections: ExitStack) -> VMKernelError:
    """The warm VMs, perhaps one that is forked into the prepared QEMU, and the error of the next."""
    leases: list[Lease] = []
    connections.callback(lambda: [lease.stream.close() for lease in leases])
    for _ in range(6):
        connection = connections.enter_context(closing(PoolConnection.open()))
        try:
            leases.append(connection.acquire())
        except VMKernelError as error:
            return error
    raise AssertionError("VMs are made")


def used_and_at_rest(home: Path) -> Rest:
    """Use the service once, so that it has opened what it opens once, and wait until it is at rest."""
    with closing(PoolConnection.open()) as connection:
        connection.acquire().stream.close()
    return at_rest(home)


def at_rest(home: Path, prepared: int = 1) -> Rest:
    """Wait until nobody has or wants a VM and the default profile has all that it keeps ready."""
    wait_until(lambda: _is_at_rest(home, prepared), TIMEOUT_S, _Unrest(home))
    pid = status()["pid"]
    before, now = Counter[str](), _descriptors(pid)
    while before != now:  # the connections by which we have asked are just being closed
        time.sleep(0.3)
        before, now = now, _descriptors(pid)
    return Rest(pid, now)


def assert_clean(home: Path, before: Rest, *, same_service: bool = True) -> None:
    """Nothing is left of what happened: no process, descriptor, socket or file; and the next lease is served."""
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        assert GuestSession(lease).value("6 * 7") == 42
        lease.stream.close()
    now = at_rest(home)
    assert not same_service or now.pid == before.pid, "the service is another one"
    wait_until(lambda: _descriptors(now.pid) == before.descriptors, 60.0, _Difference(now.pid, before.descriptors))
    assert not _stray_files(home), "files of VMs that are no more"


def _is_at_rest(home: Path, prepared: int) -> bool:
    with suppress(PoolError, OSError):
        facts = status()
        (row,) = [row for row in facts["profiles"] if row["name"] == "default"]
        ready = (row["warm"], row["prepared"]) == (row["min_warm"], prepared)
        quiet = not any(row[state] for row in facts["profiles"] for state in ("leased", "booting", "waiting"))
        idle = all(vm["state"] == "warm" for vm in facts["vms"])
        # a profile that an earlier test has used has its own prepared QEMU
        all_prepared = sum(row["prepared"] for row in facts["profiles"])
        return ready and quiet and idle and len(qemus(home)) == len(facts["vms"]) + all_prepared
    return False


def _descriptors(pid: int) -> Counter[str]:
    """Of the service, by kind."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            kinds[re.sub(r"\[\d+\]|vm-[0-9a-f]{8}|\d+", "", str(entry.readlink()))] += 1
    return kinds


def _stray_files(home: Path) -> list[Path]:
    known = {vm["name"] for vm in status()["vms"]} | {
        word.split("guest=")[1].split(",")[0]
        for process in qemus(home)
        for word in process.info["cmdline"]
        if "guest=" in word
    }
    found = [path for path in paths.run_dir().rglob("*") if re.search(r"vm-[0-9a-f]{8}", str(path))]
    return [path for path in found if not any(name in str(path) for name in known)]


class _Unrest:
    """Says, when it is shown, what the pool is at."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __str__(self) -> str:
        facts = status()
        states = {vm["name"]: (vm["state"], vm["pid"]) for vm in facts["vms"]}
        processes = [process.pid for process in qemus(self._home)]
        return f"the pool is at rest; profiles {facts['profiles']}, VMs {states}, QEMUs {processes}"


class _Difference:
    """Says, when it is shown, which descriptors there are more or fewer of."""

    def __init__(self, pid: int, before: Counter[str]) -> None:
        self._pid, self._before = pid, before

    def __str__(self) -> str:
        now = _descriptors(self._pid)
        return f"descriptors are back: {now - self._before} more, {self._before - now} fewer"
