"""Measures the relay's own share of a trivial cell: the way through the kernel process against the bare stream.

Two clones of one snapshot get the same request in turn: one over the kernel process's shell socket, the other as
frames on a leased stream, as the kernel process itself would send it. Both ends here are as thin as can be, so the
difference of the medians is what the kernel process and its two sockets add.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import select
import statistics
import time
import uuid
from collections.abc import Callable

import zmq
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import KernelManager

from benchmarks.environment import wait_until_quiet
from benchmarks.samples import OURS, Results
from guest_agent.frames import Kind, unpack_parts
from vm_kernel.guest.channel import FrameStream
from vm_kernel.pool.client import PoolConnection

TIMEOUT_S = 30
CONTENT = {"code": "1 + 1", "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
WARM_UP = 30


def measure_relay(results: Results, pairs: int, cells: int) -> None:
    """One sample a pair of VMs: the difference of the two medians, in milliseconds."""
    for _ in range(pairs):
        wait_until_quiet()
        manager = KernelManager(kernel_name=OURS)
        manager.start_kernel()
        connection = PoolConnection.open()
        try:
            client, frames = _ShellClient(manager.get_connection_info()), _FrameClient(connection)
            wait_until_quiet()
            results.add("relay_share", _difference(client.run, frames.run, cells))
            client.close()
            frames.close()
        finally:
            connection.close()
            manager.shutdown_kernel(now=True)


def _difference(relayed: Callable[[], float], bare: Callable[[], float], cells: int) -> float:
    """Milliseconds."""
    for _ in range(WARM_UP):
        relayed()
        bare()
    samples = [(relayed(), bare()) for _ in range(cells)]
    through = statistics.median(sample[0] for sample in samples)
    direct = statistics.median(sample[1] for sample in samples)
    return 1000 * (through - direct)


def _request() -> tuple[str, list[bytes]]:
    msg_id = uuid.uuid4().hex
    header = {
        "msg_id": msg_id,
        "msg_type": "execute_request",
        "session": "bench",
        "username": "bench",
        "date": "2026-01-01T00:00:00Z",
        "version": "5.4",
    }
    return msg_id, [json.dumps(part).encode() for part in (header, {}, {}, CONTENT)]


class _ShellClient:
    """A client with nothing but a shell socket. Its iopub messages are not subscribed to: they cost nothing here."""

    def __init__(self, info: KernelConnectionInfo) -> None:
        key = info["key"]
        self._key = key if isinstance(key, bytes) else key.encode()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"{info['transport']}://{info['ip']}:{info['shell_port']}")

    def run(self) -> float:
        """Seconds from the request to its reply."""
        msg_id, parts = _request()
        signature = hmac.new(self._key, b"".join(parts), hashlib.sha256).hexdigest().encode()
        begin = time.perf_counter()
        self._socket.send_multipart([b"<IDS|MSG>", signature, *parts])
        if not self._socket.poll(1000 * TIMEOUT_S):
            raise RuntimeError("no reply over the shell socket")
        reply = self._socket.recv_multipart()
        seconds = time.perf_counter() - begin
        if json.loads(reply[3])["msg_id"] != msg_id:
            raise RuntimeError("a reply to something else")
        return seconds

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class _FrameClient:
    """Speaks frames on a lease of its own."""

    def __init__(self, connection: PoolConnection) -> None:
        self._stream = FrameStream(connection.acquire().stream)

    def run(self) -> float:
        """Seconds from the request to its reply."""
        msg_id, parts = _request()
        begin = time.perf_counter()
        self._stream.send_parts(Kind.SHELL, [b"bench", *parts])
        while True:
            if not select.select([self._stream], [], [], TIMEOUT_S)[0]:
                raise RuntimeError("no reply on the stream")
            for kind, body in self._stream.receive():
                if kind is Kind.SHELL and json.loads(unpack_parts(body)[2])["msg_id"] == msg_id:
                    return time.perf_counter() - begin

    def close(self) -> None:
        """Close the stream; the VM ends."""
        self._stream.close()
