"""Notices at once when a VM ends by itself, or when its guest speaks before anybody has leased it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vm_kernel.pool.state import PooledVM

Ended = Callable[[PooledVM, str], None]


def start(vm: PooledVM, ended: Ended) -> None:
    """Watch a warm VM; ``ended`` is called once, on the event loop, with the cause."""
    machine = vm.machine
    assert machine is not None

    def process_ended() -> None:
        stop(vm)
        ended(vm, machine.end_cause())

    asyncio.get_running_loop().add_reader(machine.fileno(), process_ended)
    start_stream(vm, ended)


def start_stream(vm: PooledVM, ended: Ended) -> None:
    """Watch the stream of a warm VM (again): nothing is to be heard from it."""
    assert vm.stream is not None

    def stream_ready() -> None:
        stop(vm)
        ended(vm, "its guest closed the stream or spoke before it was leased")

    asyncio.get_running_loop().add_reader(vm.stream.fileno(), stream_ready)


def stop_stream(vm: PooledVM) -> None:
    """The stream is the lease holder's now. The process is watched on."""
    if vm.stream is not None and vm.stream.fileno() >= 0:
        asyncio.get_running_loop().remove_reader(vm.stream.fileno())


def stop(vm: PooledVM) -> None:
    """Watch no more. Before the machine is destroyed, which closes its descriptor. Safe to call twice."""
    stop_stream(vm)
    if vm.machine is not None:
        asyncio.get_running_loop().remove_reader(vm.machine.fileno())
