"""Notices at once when a VM ends by itself, or when its guest speaks before anybody has leased it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vm_kernel.pool.state import PooledVM

Ended = Callable[[PooledVM, str], None]


def start(vm: PooledVM, ended: Ended) -> None:
    """Watch a warm VM; ``ended`` is called once, on the event loop, with the cause."""
    assert vm.machine is not None
    assert vm.stream is not None
    loop = asyncio.get_running_loop()

    def call(cause: str) -> None:
        stop(vm)
        ended(vm, cause)

    loop.add_reader(vm.machine.fileno(), call, "its QEMU process ended")
    loop.add_reader(vm.stream.fileno(), call, "its guest closed the stream or spoke before it was leased")


def stop_stream(vm: PooledVM) -> None:
    """The stream is the lease holder's now. The process is watched on."""
    if vm.stream is not None and vm.stream.fileno() >= 0:
        asyncio.get_running_loop().remove_reader(vm.stream.fileno())


def stop(vm: PooledVM) -> None:
    """Watch no more. Before the machine is destroyed, which closes its descriptor. Safe to call twice."""
    stop_stream(vm)
    if vm.machine is not None:
        asyncio.get_running_loop().remove_reader(vm.machine.fileno())
