"""Measures a kernel through jupyter_client, as JupyterLab and nbclient use it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from benchmarks.environment import wait_until_quiet
from benchmarks.samples import OURS, STOCK, Results

TIMEOUT_S = 120.0
#: a thousand lines of a thousand bytes, so many times
PRINT_MB = "for _ in range(1000 * {}):\n    print('x' * 999)"


def measure_starts(results: Results, rounds: int, *, whole: bool = True, warm_up: int = 1) -> None:
    """Launch, first result, restart: a fresh kernel each time, the two sides in turn and in changing order.

    Unless ``whole``, starts as nbclient makes them, and by a client that waits for the port, are left out. ``warm_up``:
    rounds before those that count, to fill the page cache.
    """
    for number in range(warm_up + rounds):
        for side in _order(number):
            wait_until_quiet()
            seconds = _start_and_restart(side)
            if whole:
                wait_until_quiet()
                seconds |= _start_as_nbclient(side)
                wait_until_quiet()
                seconds["launch_to_info_open"] = _launch_to_open_port(side)
            if number >= warm_up:
                for key, value in seconds.items():
                    results.add(key, 1000 * value, side)


def measure_cells(results: Results, rounds: int, cells: int, prints: int = 3, megabytes: int = 10) -> None:
    """Trivial cells and much output, in two kernels that run side by side."""
    output = PRINT_MB.format(megabytes)
    with kernel(OURS) as ours, kernel(STOCK) as stock:
        clients = {OURS: ours[1], STOCK: stock[1]}
        wait_until_quiet()
        for client in clients.values():
            for _ in range(10):
                _timed_cell(client, "1 + 1")
        for number in range(rounds):
            for side in _order(number):
                for _ in range(cells):
                    results.add("trivial_cell", 1000 * _timed_cell(clients[side], "1 + 1"), side)
        for number in range(prints):
            for side in _order(number):
                seconds = _timed_cell(clients[side], output, megabytes * 1_000_000)
                results.add(f"stdout_{megabytes}mb", seconds, side)


def _order(number: int) -> tuple[str, str]:
    return (OURS, STOCK) if number % 2 == 0 else (STOCK, OURS)


def _start_and_restart(side: str) -> dict[str, float]:
    begin = time.perf_counter()
    with kernel(side) as (manager, client):
        _kernel_info(client)
        info = time.perf_counter()
        _first_result(client)
        result = time.perf_counter()
        # an idle kernel with a full pool is what a user restarts
        wait_until_quiet()
        again = time.perf_counter()
        manager.restart_kernel()
        _kernel_info(client)
        info_again = time.perf_counter()
        _first_result(client)
        result_again = time.perf_counter()
    return {
        "launch_to_info": info - begin,
        "start_to_result": result - begin,
        "restart_to_info": info_again - again,
        "restart_to_result": result_again - again,
    }


def _start_as_nbclient(side: str) -> dict[str, float]:
    begin = time.perf_counter()
    with kernel(side) as (_, client):
        client.wait_for_ready(timeout=TIMEOUT_S)
        ready = time.perf_counter()
        _first_result(client)
        result = time.perf_counter()
    return {"start_to_ready": ready - begin, "ready_to_result": result - begin}


def _launch_to_open_port(side: str) -> float:
    """Without ZeroMQ's pause after a connection that came too early: its 100 to 200 ms hide the kernel's own time."""
    begin = time.perf_counter()
    with kernel(side, wait_for_port=True) as (_, client):
        _kernel_info(client)
        return time.perf_counter() - begin


@contextmanager
def kernel(name: str, wait_for_port: bool = False) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A kernel of that side, and a client; killed at the end."""
    manager = KernelManager(kernel_name=name)
    manager.start_kernel()
    client: BlockingKernelClient = manager.blocking_client()
    try:
        while wait_for_port and not _is_open(client.shell_port):
            time.sleep(0.001)
        client.start_channels()
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _kernel_info(client: BlockingKernelClient) -> None:
    _reply(client, client.kernel_info())


def _first_result(client: BlockingKernelClient) -> None:
    """Run a cell and wait for its result, which travels with the reply.

    What is published is no measure so early: a subscription that is made while a kernel starts may miss it.
    """
    reply = _reply(client, client.execute("", user_expressions={"result": "6 * 7"}))
    if reply["content"]["user_expressions"]["result"]["data"]["text/plain"] != "42":
        raise RuntimeError(f"a wrong result: {reply['content']}")


def _reply(client: BlockingKernelClient, msg_id: str) -> dict[str, Any]:
    """Wait for a reply as real clients do, with an eye on iopub: ZeroMQ renews a subscription only when it is used."""
    deadline = time.perf_counter() + TIMEOUT_S
    while True:
        while not client.shell_channel.socket.poll(5) and time.perf_counter() < deadline:
            client.iopub_channel.socket.poll(0)
        message: dict[str, Any] = client.get_shell_msg(timeout=0)
        if message["parent_header"].get("msg_id") == msg_id:
            return message


def _timed_cell(client: BlockingKernelClient, code: str, stdout_bytes: int = 0) -> float:
    """Seconds from the request to its reply and its idle. Raises RuntimeError unless all output has arrived."""
    begin = time.perf_counter()
    msg_id = client.execute(code)
    reply = _reply(client, msg_id)
    received = 0
    while True:
        message = client.get_iopub_msg(timeout=TIMEOUT_S)
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        content = message["content"]
        received += len(content.get("text", ""))
        if content.get("execution_state") == "idle":
            break
    seconds = time.perf_counter() - begin
    if reply["content"]["status"] != "ok" or received < stdout_bytes:
        raise RuntimeError(f"{code!r} gave {received} bytes and {reply['content']}")
    return seconds
