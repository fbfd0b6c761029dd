"""What one lease has used and done so far, as far as the service knows. Kept by the observer; decides nothing."""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vm_kernel.pool.notes import Allowance
from vm_kernel.pool.peer import Peer
from vm_kernel.pool.state import PooledVM
from vm_kernel.vm.usage import Usage


class Point(NamedTuple):
    """Totals of a session at a moment (time.monotonic)."""

    at: float
    cpu_s: float
    output_bytes: int


@dataclass(frozen=True)
class Flag:
    """A limit that a session exceeds. value and limit are in the unit that ``text`` names; since: ISO time."""

    kind: str
    value: float
    limit: float
    text: str
    since: str


@dataclass(eq=False)
class Session:
    """One lease. cpu_s counts from its begin; memory is its VM's own, in bytes; output is what its client tells."""

    vm: PooledVM
    peer: Peer
    kernel_id: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    begun: float = field(default_factory=time.monotonic)
    executions: int = 0
    output_bytes: int = 0
    file_bytes: int = 0
    checkpoints: int = 0
    cpu_s: float = 0.0
    memory: int = 0
    peak_memory: int = 0
    notes_dropped: int = 0
    allowance: Allowance = field(default_factory=Allowance)
    flags: dict[str, Flag] = field(default_factory=dict)
    trail: deque[Point] = field(default_factory=deque)
    _pid: int = 0
    _pid_cpu_s: float = 0.0

    @property
    def ids(self) -> dict[str, Any]:
        """What ties the events of this session together."""
        return {
            "lease": self.id,
            "vm": self.vm.name,
            "profile": self.vm.profile,
            "kernel_id": self.kernel_id,
            "client_pid": self.peer.pid,
            "uid": self.peer.uid,
        }

    @property
    def totals(self) -> dict[str, Any]:
        """The sums so far."""
        return {
            "duration_s": round(time.monotonic() - self.begun, 3),
            "executions": self.executions,
            "cpu_s": round(self.cpu_s, 2),
            "peak_memory_mib": round(self.peak_memory / (1 << 20), 1),
            "output_bytes": self.output_bytes,
            "file_bytes": self.file_bytes,
            "checkpoints": self.checkpoints,
        }

    def used(self, pid: int, usage: Usage) -> None:
        """A look at the VM's QEMU. The first one was warm before; one that a rollback brings is ours from its start."""
        if self._pid:
            self.cpu_s += max(0.0, usage.cpu_s - (self._pid_cpu_s if pid == self._pid else 0.0))
        self._pid, self._pid_cpu_s = pid, usage.cpu_s
        self.memory = usage.memory
        self.peak_memory = max(self.peak_memory, usage.memory)

    def mark(self, keep_s: float) -> None:
        """Remember the totals of this moment, and forget those that are older than ``keep_s``."""
        now = time.monotonic()
        self.trail.append(Point(now, self.cpu_s, self.output_bytes))
        while len(self.trail) > 2 and self.trail[1].at <= now - keep_s:
            self.trail.popleft()

    def point_at(self, seconds_ago: float) -> Point:
        """Totals of so many seconds ago; of the begin, if that is later."""
        earliest = time.monotonic() - seconds_ago
        found = self.trail[-1]
        for point in reversed(self.trail):
            if point.at < earliest:
                break
            found = point
        return found
