"""The life of one pooled VM: its states, and the only place where it goes from one to the next."""

from __future__ import annotations

import asyncio
import enum
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from vm_kernel.pool.factory import Source
from vm_kernel.vm.machine import Machine


class VMState(enum.Enum):
    """Where a VM is in its life. A VM is leased once and never becomes warm again."""

    BOOTING = "booting"  # being forked from the golden snapshot, made unique and checked
    WARM = "warm"  # ready; nobody has it
    LEASED = "leased"  # one session's
    CHECKPOINTING = "checkpointing"  # leased, and paused while its state is saved
    DYING = "dying"  # being destroyed
    DEAD = "dead"  # nothing of it is left


_NEXT = {
    VMState.BOOTING: {VMState.WARM, VMState.DYING},
    VMState.WARM: {VMState.LEASED, VMState.DYING},
    VMState.LEASED: {VMState.CHECKPOINTING, VMState.DYING},
    VMState.CHECKPOINTING: {VMState.LEASED, VMState.DYING},
    VMState.DYING: {VMState.DEAD},
    VMState.DEAD: set(),
}


@dataclass(frozen=True)
class LeaseHolder:
    """Who has a VM."""

    pid: int
    kernel_id: str
    since: datetime


@dataclass(eq=False)
class PooledVM:
    """One VM of the pool. ``machine`` and ``stream`` are there from WARM on; the stream leaves with the lease.

    ``ended`` gets the cause when the VM ends without having been released. ``tell`` sends an event to the holder of the
    lease. ``check``: the health check that has the stream now; ``checked_at``: when the last one ended (monotonic).
    """

    name: str
    profile: str
    state: VMState = VMState.BOOTING
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    machine: Machine | None = None
    stream: socket.socket | None = None
    holder: LeaseHolder | None = None
    source: Source | None = None
    warm_ms: float = 0.0
    tell: Callable[[dict[str, Any]], None] | None = None
    check: asyncio.Future[Any] | None = None
    checked_at: float = field(default_factory=time.monotonic)
    ended: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def go(self, state: VMState) -> None:
        """Enter ``state``. Raises RuntimeError, which is a bug of ours, if it cannot follow the present one."""
        if state not in _NEXT[self.state]:
            raise RuntimeError(f"VM {self.name} is {self.state.value} and cannot become {state.value}")
        self.state = state

    @property
    def age_s(self) -> float:
        """Seconds since this VM was asked for."""
        return (datetime.now(UTC) - self.created_at).total_seconds()
