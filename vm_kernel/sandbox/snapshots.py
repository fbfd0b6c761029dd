"""Snapshots of one sandbox: its live state saved under a name, and brought back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from vm_kernel.sandbox.sandbox import Sandbox

T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """A saved state.

    size_mib: of what the sandbox had changed since it was forked from its golden snapshot. pause_ms: how long it stood
    still. kept: it outlives the sandbox. refusal: why it cannot be restored; None if it can.
    """

    name: str
    created_at: datetime
    size_mib: float
    pause_ms: float
    kept: bool
    refusal: str | None

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Snapshot:
        """From what the pool service tells."""
        return cls(**facts | {"created_at": datetime.fromisoformat(facts["created_at"])})


class SnapshotManager:
    """``Sandbox.snapshots``. Each call waits for the execution that is under way; further ones wait for it.

    A snapshot has every variable, file and process of the VM. It ends with the sandbox unless it is kept. All methods
    raise SandboxClosed or VMDied if there is no VM, PoolUnavailable if the pool service has ended.
    """

    def __init__(self, box: Sandbox) -> None:
        self._box = box

    async def create(self, name: str, *, keep: bool = False) -> Snapshot:
        """Save the present state; the sandbox goes on. A snapshot of that name is replaced.

        keep: for later sandboxes of the same profile, too. Raises CheckpointError (no room, a name that is none).
        """

        async def work() -> Snapshot:
            async with self._box.standing_still() as ask:
                return Snapshot.of(await ask(lambda pool: pool.save_checkpoint(name, keep)))

        return await _to_the_end(work)

    async def list(self) -> list[Snapshot]:
        """What can be restored here, oldest first; what cannot says why (``refusal``)."""

        async def work() -> list[Snapshot]:
            async with self._box.undisturbed() as ask:
                return [Snapshot.of(facts) for facts in (await ask(lambda pool: pool.checkpoints()))["checkpoints"]]

        return await _to_the_end(work)

    async def restore(self, name: str) -> None:
        """Go back to a saved state; what has happened since is lost. Raises CheckpointError, changing nothing."""

        async def work() -> None:
            async with self._box.undisturbed() as ask:
                self._box.move(await ask(lambda pool: pool.rollback(name)))

        await _to_the_end(work)

    async def delete(self, name: str) -> None:
        """Delete a snapshot. Raises CheckpointError if there is none of that name."""

        async def work() -> None:
            async with self._box.undisturbed() as ask:
                await ask(lambda pool: pool.delete_checkpoint(name))

        await _to_the_end(work)


class SyncSnapshotManager:
    """``SyncSandbox.snapshots``: a SnapshotManager whose methods block."""

    def __init__(self, call: Callable[[Callable[[SnapshotManager], Coroutine[Any, Any, Any]]], Any]) -> None:
        self._call = call

    def create(self, name: str, *, keep: bool = False) -> Snapshot:
        """See SnapshotManager.create()."""
        snapshot: Snapshot = self._call(lambda manager: manager.create(name, keep=keep))
        return snapshot

    def list(self) -> list[Snapshot]:
        """See SnapshotManager.list()."""
        snapshots: list[Snapshot] = self._call(lambda manager: manager.list())
        return snapshots

    def restore(self, name: str) -> None:
        """See SnapshotManager.restore()."""
        self._call(lambda manager: manager.restore(name))

    def delete(self, name: str) -> None:
        """See SnapshotManager.delete()."""
        self._call(lambda manager: manager.delete(name))


async def _to_the_end(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """A half asked question would confuse the lease: whoever is cancelled leaves it to its end."""
    return await asyncio.shield(asyncio.ensure_future(work()))
