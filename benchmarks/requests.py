"""Measures single requests on their whole way, and what each stretch of the way takes.

One client, as thin as can be, asks the same in turn
- a stock ipykernel,
- a kernel of ours, over its sockets                        (guest + agent + kernel process),
- a leased VM's stream, as the kernel process itself would  (guest + agent),
- an ipykernel from inside the guest                        (guest),
- a kernel of ours whose "VM" is processes of the host      (stock ipykernel + agent + kernel process).
Differences of medians of one round are the samples of the shares. All end with the answer *and* its idle.
"""

from __future__ import annotations

import select
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from jupyter_client.manager import KernelManager

from benchmarks.environment import wait_until_quiet
from benchmarks.inside import Inside
from benchmarks.local_pool import local_pool
from benchmarks.samples import OURS, STOCK, Results
from benchmarks.thin import REQUESTS, TIMEOUT_S, Client, Part, SocketClient, part_of
from guest_agent.frames import Kind, unpack_parts
from vm_kernel.guest.channel import FrameStream
from vm_kernel.pool.client import PoolConnection


def measure_requests(
    results: Results, rounds: int, count: int, *, names: Iterable[str] = REQUESTS, hundred: bool = True
) -> None:
    """Trivial cell, completion and comm, or ``names``; then, if ``hundred``, 100 cells, in sequence and at once."""
    with _kernel(OURS) as ours, _kernel(STOCK) as stock, _bare_stream() as bare:
        inside = Inside(ours)
        wait_until_quiet()
        for name in names:
            usual_s = 0.1
            for _ in range(rounds):
                seconds: dict[str, list[float]] = {"ours": [], "bare": [], "stock": []}
                for _ in range(count):
                    seconds["ours"].append(ours.ask(name))
                    seconds["bare"].append(bare.ask(name))
                    seconds["stock"].append(stock.ask(name))
                seconds["guest"] = inside.ask(name, count, usual_s)
                usual_s = sum(seconds["guest"]) + 0.5
                _add(results, name, {way: 1000 * statistics.median(taken) for way, taken in seconds.items()})
        for _ in range(rounds if hundred else 0):
            for client, side in ((ours, OURS), (stock, STOCK)):
                for pipelined in (False, True):
                    key = "cells_pipelined" if pipelined else "cells_in_sequence"
                    results.add(key, client.cells(100, pipelined), side)


def _add(results: Results, name: str, ms: dict[str, float]) -> None:
    results.add(f"{name}_whole", ms["ours"])
    results.add(f"{name}_whole", ms["stock"], STOCK)
    results.add(f"{name}_guest", ms["guest"])
    results.add(f"{name}_added", ms["ours"] - ms["guest"])
    results.add(f"{name}_agent", ms["bare"] - ms["guest"])
    results.add(f"{name}_host", ms["ours"] - ms["bare"])


def measure_relay(results: Results, rounds: int, count: int) -> None:
    """The relay without a VM: what it adds to a request, and its throughput."""
    with local_pool() as environment, _kernel(OURS, environment) as ours, _kernel(STOCK) as stock:
        for name in REQUESTS:
            for _ in range(rounds):
                pairs = [(ours.ask(name), stock.ask(name)) for _ in range(count)]
                through, direct = (statistics.median(side) for side in zip(*pairs, strict=True))
                results.add(f"{name}_relay", 1000 * (through - direct))
        for _ in range(rounds):
            results.add("stdout_relay", ours.stdout())
            results.add("stdout_relay", stock.stdout(), STOCK)


def measure_stdout(results: Results, rounds: int) -> None:
    """A hundred megabytes through everything, and inside the guest alone."""
    with _kernel(OURS) as ours, _kernel(STOCK) as stock:
        inside = Inside(ours)
        wait_until_quiet()
        for _ in range(rounds):
            results.add("stdout_100mb", ours.stdout())
            results.add("stdout_100mb", stock.stdout(), STOCK)
            results.add("stdout_guest", inside.ask("stdout", 1, 5.0)[0])


@contextmanager
def _kernel(name: str, environment: dict[str, str] | None = None) -> Iterator[SocketClient]:
    manager = KernelManager(kernel_name=name)
    manager.start_kernel(**({"env": environment} if environment else {}))
    client = SocketClient(dict(manager.get_connection_info()))
    try:
        client.prepare()
        yield client
    finally:
        client.close()
        manager.shutdown_kernel(now=True)


@contextmanager
def _bare_stream() -> Iterator[Client]:
    connection = PoolConnection.open()
    try:
        stream = FrameStream(connection.acquire().stream)
        client = _FrameClient(stream)
        client.prepare()
        yield client
        stream.close()
    finally:
        connection.close()


class _FrameClient(Client):
    """Speaks frames on a lease of its own, as the kernel process does."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream

    def send(self, msg_type: str, parts: list[bytes]) -> None:
        self._stream.send_parts(Kind.SHELL, [b"bench", *parts])

    def receive(self, timeout_s: float = TIMEOUT_S) -> Iterator[Part]:
        if select.select([self._stream], [], [], timeout_s)[0]:
            for _, body in self._stream.receive():
                yield part_of(unpack_parts(body)[1:])
