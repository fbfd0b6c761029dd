"""Clones of one snapshot wake up with the same memory; nobody must be able to tell."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.guest_session import GuestSession
from vm_kernel.pool.client import PoolConnection

#: The host's clock is right when it is sent and late by the time that it takes until the guest has set it: of ten
#: emulated guests that wake up at once on a busy machine, up to 2.8 s (seen). A clock that nobody sets is off by the
#: age of the golden snapshot, which is older than this before the first test begins.
CLOCK_ERROR_S = 8.0

# the very first action in each session
FIRST_ACTION = """
import json, os, platform, random, tempfile, time, uuid, socket, sqlite3, ssl, multiprocessing
import numpy
print(json.dumps({
    "os.urandom": os.urandom(16).hex(),
    "uuid4": str(uuid.uuid4()),
    "uuid1": str(uuid.uuid1()),
    "random": random.random(),
    "numpy.random": numpy.random.random(),
    "numpy generator": numpy.random.default_rng().random(),
    "ssl": ssl.RAND_bytes(16).hex(),
    "sqlite": sqlite3.connect(":memory:").execute("select hex(randomblob(16))").fetchone()[0],
    "authkey": bytes(multiprocessing.current_process().authkey).hex(),
    "tempfile": tempfile.mktemp(),
    "boot_id": open("/proc/sys/kernel/random/boot_id").read(),
    "machine_id": open("/etc/machine-id").read(),
    "hostname": socket.gethostname(),
    "platform.node": platform.node(),
    "session": get_ipython().kernel.session.session,
    "time": time.time(),
}))
"""


def test_ten_clones_drawn_at_once_differ_in_all_that_should_differ(vm_home: Path) -> None:
    connections = [PoolConnection.open() for _ in range(10)]
    try:
        with ThreadPoolExecutor(10) as threads:
            leases = list(threads.map(lambda connection: connection.acquire(), connections))
            facts = list(threads.map(lambda lease: _first_action(GuestSession(lease)), leases))
    finally:
        for connection in connections:
            connection.close()
    assert len({lease.vm.name for lease in leases}) == 10
    for name in facts[0]:
        if name not in ("time", "clock error"):
            assert len({str(fact[name]) for fact in facts}) == 10, f"{name} is not unique: {[f[name] for f in facts]}"
    assert max(abs(fact["clock error"]) for fact in facts) < CLOCK_ERROR_S


def _first_action(session: GuestSession) -> dict[str, object]:
    result = session.execute(FIRST_ACTION, timeout_s=120)
    before = time.time()
    assert result.status == "ok", result.content
    now = session.value("__import__('time').time()")
    after = time.time()
    error = 0.0 if before <= now <= after else min(abs(now - before), abs(now - after))
    return {**json.loads(result.text), "clock error": error}
