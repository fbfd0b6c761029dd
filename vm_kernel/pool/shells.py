"""Prepared shells of one profile: empty QEMUs that were started ahead, so that a refill only has to restore a VM."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

import structlog

from vm_kernel.errors import VMKernelError
from vm_kernel.pool.factory import Source, VMFactory
from vm_kernel.vm.machine import PreparedMachine

if TYPE_CHECKING:
    from vm_kernel.pool.tasks import Tasks

#: after a shell that could not be started, or ended, the next one waits so long
RETRY_S = 5.0


class Shells:
    """The shells of the present golden snapshot. On the service's event loop, like everything of the pool."""

    def __init__(self, factory: VMFactory, tasks: Tasks, profile: str) -> None:
        self._factory = factory
        self._tasks = tasks
        self._ready: list[tuple[Source, PreparedMachine]] = []
        self._filling = False
        self._retry_at = 0.0
        self._log = structlog.get_logger().bind(profile=profile)

    def __len__(self) -> int:
        return len(self._ready)

    def missing(self, wanted: int) -> bool:
        """Whether fill() is to be called."""
        return len(self._ready) < wanted and not self._filling and time.monotonic() >= self._retry_at

    def take(self, source: Source) -> PreparedMachine | None:
        """A shell for a clone of ``source``, which is the caller's then; None if there is none. Does not block."""
        for entry in self._ready:
            of, shell = entry
            if of is source and shell.alive and not shell.stopped:
                self._forget(entry)
                return shell
        return None

    async def fill(self, source: Source, wanted: int) -> None:
        """Start shells until there are ``wanted``, one after the other. The caller holds the snapshot."""
        self._filling = True
        try:
            while len(self._ready) < wanted:
                name = f"vm-{secrets.token_hex(4)}"
                shell = await self._tasks.in_executor(self._factory.prepare, source, name)
                entry = (source, shell)
                self._ready.append(entry)
                asyncio.get_running_loop().add_reader(shell.fileno(), self._ended, entry)
        except VMKernelError as error:
            self._retry_at = time.monotonic() + RETRY_S
            self._log.warning("shell_failed", error=error.message)
        finally:
            self._filling = False

    async def keep_only(self, source: Source | None, wanted: int) -> None:
        """Destroy those of other snapshots, those that are stopped, and those above ``wanted``."""
        kept = [entry for entry in self._ready if entry[0] is source and not entry[1].stopped][:wanted]
        surplus = [entry for entry in self._ready if entry not in kept]
        for entry in surplus:
            self._forget(entry)
        await asyncio.gather(*(self._tasks.in_executor(shell.destroy) for _, shell in surplus))

    def _ended(self, entry: tuple[Source, PreparedMachine]) -> None:
        self._forget(entry)
        self._retry_at = time.monotonic() + RETRY_S
        self._log.warning("shell_ended", vm=entry[1].name)
        self._tasks.spawn(self._tasks.in_executor(entry[1].destroy))

    def _forget(self, entry: tuple[Source, PreparedMachine]) -> None:
        asyncio.get_running_loop().remove_reader(entry[1].fileno())
        self._ready.remove(entry)
