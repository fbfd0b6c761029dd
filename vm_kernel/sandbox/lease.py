"""A lease on the event loop: taken in a thread, because the pool's client blocks, and watched from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from vm_kernel.errors import VMDied, VMKernelError
from vm_kernel.pool.client import Lease, PoolConnection

T = TypeVar("T")


async def take(profile: str, holder: str, on_waiting: Callable[[str], None] | None, fork: str | None = None) -> Lease:
    """A VM of that profile, or one that goes on from the state behind the token ``fork``.

    ``on_waiting`` is called on the event loop with the reason for a wait, in words.

    Raises PoolFull, UnknownProfile, ImageError, HostError, PoolUnavailable, … Whoever is cancelled holds no VM.
    """
    loop = asyncio.get_running_loop()
    opening = loop.run_in_executor(None, PoolConnection.open)
    try:
        connection = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_opened)
        raise

    def tell(reason: str) -> None:
        if on_waiting is not None:
            loop.call_soon_threadsafe(on_waiting, reason)

    acquiring = loop.run_in_executor(None, connection.acquire, profile, tell, holder, fork)
    try:
        return await asyncio.shield(acquiring)
    except asyncio.CancelledError:
        connection.abandon()  # ends the thread's wait, too
        acquiring.add_done_callback(partial(_dispose, connection))
        raise
    except BaseException:
        connection.close()
        raise


def watch(lease: Lease, on_end: Callable[[VMKernelError], None]) -> Callable[[], None]:
    """Call ``on_end`` when the pool says that the VM has ended. Returns what ends the watch.

    If it is the pool service that has ended, nothing is said: the VM goes on, and its stream tells when it ends.
    """
    loop = asyncio.get_running_loop()
    fd = lease.connection.fileno()

    def news() -> None:
        try:
            while (event := lease.connection.read_event(0.0)) is not None:
                if event["event"] == "vm_gone":
                    loop.remove_reader(fd)
                    on_end(VMDied(f"The virtual machine has ended: {event.get('reason')}", "Its state is lost."))
                    return
        except VMKernelError:
            loop.remove_reader(fd)

    loop.add_reader(fd, news)
    return lambda: _unwatch(loop, fd)


async def ask(lease: Lease, function: Callable[[PoolConnection], T]) -> T:
    """Ask the pool service something over a lease that nobody watches meanwhile.

    Whoever is cancelled waits for the answer all the same: it must not be taken for that of the next question.
    """
    asking = asyncio.get_running_loop().run_in_executor(None, function, lease.connection)
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        await asyncio.wait([asking])
        raise


def _unwatch(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    loop.remove_reader(fd)


def _close_opened(opening: asyncio.Future[PoolConnection]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _dispose(connection: PoolConnection, acquiring: asyncio.Future[Lease]) -> None:
    """Nobody wants that lease any more, whether it came or not."""
    if not acquiring.cancelled() and acquiring.exception() is None:
        acquiring.result().stream.close()
    connection.close()
