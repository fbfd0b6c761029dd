"""``VMPool``: the pool as scripts and agents use it: what is in it, and code in many fresh VMs at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vm_kernel.pool.client import PoolConnection
from vm_kernel.sandbox.result import ExecutionResult
from vm_kernel.sandbox.sandbox import Sandbox


@dataclass(frozen=True)
class PooledVM:
    """One VM of the pool service, as it was when the service was asked.

    state: ``booting``, ``warm``, ``leased``, ``checkpointing``, ``dying`` or ``dead``. created_at: timezone-aware.
    pid: of its QEMU; None while it boots. unique_memory_mib: host memory that it has for itself.
    holder_pid: the process that has it; None if nobody has. kernel_id: what that process calls its session.
    """

    name: str
    profile: str
    state: str
    created_at: datetime
    pid: int | None
    unique_memory_mib: float | None
    holder_pid: int | None
    kernel_id: str

    @classmethod
    def of(cls, facts: dict[str, Any]) -> PooledVM:
        """From an entry of the service's status."""
        lease = facts["lease"] or {}
        return cls(
            name=facts["name"],
            profile=facts["profile"],
            state=facts["state"],
            created_at=datetime.fromisoformat(facts["created_at"]),
            pid=facts["pid"],
            unique_memory_mib=facts["unique_memory_mib"],
            holder_pid=lease.get("pid"),
            kernel_id=lease.get("kernel_id", ""),
        )


class VMPool:
    """Sandboxes of one profile, a bounded number at once: ``results = await VMPool().map(codes, timeout=10)``.

    profile: of the pool's configuration. at_once: VMs that this object has at the same time; further requests wait.
    options: for each Sandbox (``name``, ``on_waiting``, ``max_output_bytes``).
    """

    def __init__(self, profile: str = "default", *, at_once: int = 8, **options: Any) -> None:
        if at_once < 1:
            raise ValueError(f"at_once is {at_once}; one VM is the least")
        self.profile = profile
        self._options = options
        self._slots = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def sandbox(self) -> AsyncIterator[Sandbox]:
        """A sandbox of one's own for the length of the block. Raises as Sandbox.start()."""
        async with self._slots, Sandbox(self.profile, **self._options) as box:
            yield box

    async def run(self, code: str, *, timeout: float | None = None) -> ExecutionResult:  # noqa: ASYNC109
        """Execute code in a fresh VM that is destroyed afterwards. See Sandbox.execute() for timeout and errors."""
        async with self.sandbox() as box:
            return await box.execute(code, timeout=timeout)

    async def map(
        self,
        codes: Iterable[str],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[ExecutionResult | BaseException]:
        """Execute each code in a fresh VM of its own, as many as allowed at once. Results in the order of the codes.

        timeout: seconds for each. What cannot be executed (its VM ended, there was none to be had) has its exception in
        the list; the others are not disturbed.
        """
        return await asyncio.gather(*(self.run(code, timeout=timeout) for code in codes), return_exceptions=True)

    async def vms(self) -> list[PooledVM]:
        """Every VM that the pool service has now, of all profiles. Raises PoolUnavailable."""
        return [PooledVM.of(facts) for facts in (await self.status())["vms"]]

    async def status(self) -> dict[str, Any]:
        """All that the pool service knows about itself; it is started if need be. Raises PoolUnavailable."""
        return await asyncio.get_running_loop().run_in_executor(None, _status)


def _status() -> dict[str, Any]:
    connection = PoolConnection.open()
    try:
        return connection.status()
    finally:
        connection.close()
