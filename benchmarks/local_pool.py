"""A pool whose "VM" is an agent and an ipykernel in ordinary processes of the host: for the relay's own speed.

Everything of ours that a message passes is there (kernel process, stream, agent), and ipykernel is as fast as the
stock one beside it: what remains between the two is the relay.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from vm_kernel.pool.protocol import VMFacts, encode

_FACTS = VMFacts(
    name="local",
    profile="default",
    accelerator="none",
    transport="socketpair",
    memory_mib=0,
    vcpus=0,
    image="",
    image_digest="",
    golden_key="",
    created_at=datetime.now(UTC).isoformat(),
    qemu_version="",
    libvirt_version="",
    warm_ms=0.0,
)


@contextmanager
def local_pool() -> Iterator[dict[str, str]]:
    """The environment of a kernel that is to get its "VM" here. One lease at a time."""
    with tempfile.TemporaryDirectory(prefix="vmk-local-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as door:
        path = Path(folder, "run", "pool.sock")
        path.parent.mkdir()
        door.bind(str(path))
        door.listen()
        threading.Thread(target=_serve, args=(door,), daemon=True).start()
        try:
            yield {**os.environ, "VM_KERNEL_HOME": folder}
        finally:
            door.shutdown(socket.SHUT_RDWR)


def _serve(door: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = door.accept()
            with connection:
                _lease(connection)


def _lease(connection: socket.socket) -> None:
    connection.recv(4096)
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "guest_agent.agent", "--local", str(theirs.fileno())]
    with theirs:
        agent = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    with ours:
        line = encode({"event": "lease", "vm": _FACTS._asdict()})
        socket.send_fds(connection, [line], [ours.fileno()])
    while connection.recv(4096):  # the lease lasts as long as its connection
        pass
    try:
        agent.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
