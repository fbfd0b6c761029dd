"""Whose checkpoints there are, what they take of the disk, and when they go. How one is made: ``vm_kernel.vm``.

A session's checkpoints end with its lease, except those that it keeps: these are for all sessions of this user.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from vm_kernel import paths
from vm_kernel.errors import CheckpointError, GoldenError
from vm_kernel.pool.factory import Source
from vm_kernel.pool.state import PooledVM, VMState
from vm_kernel.vm import checkpoints
from vm_kernel.vm.checkpoints import Checkpoint

T = TypeVar("T")

#: checkpoints of one session at the most
MAX_PER_SESSION = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OTHER_GOLDEN = (
    "it belongs to another golden snapshot: the image, the profile, the guest agent or QEMU has changed since, "
    "or the snapshot was built anew"
)


@dataclass(frozen=True)
class Entry:
    """One checkpoint that a session can go back to. ``source``: held, so that it stays usable; None if only kept."""

    checkpoint: Checkpoint
    source: Source | None
    kept: bool


class CheckpointStore:
    """All checkpoints of a pool service, on disk."""

    def __init__(self, limit_mib: int, executor: Executor) -> None:
        self.limit_mib = limit_mib
        #: what the live ones take of the disk, by folder
        self.live_bytes: dict[Path, int] = {}
        self.forks: dict[str, Entry] = {}
        self.saved = 0
        self._executor = executor
        self.saving = asyncio.Lock()

    def open(self) -> None:
        """Remove what a service that was killed has left. Raises ConfigError if the folder is somebody else's."""
        for folder in (paths.checkpoints_dir(), self.live_dir, self.kept_dir):
            paths.make_private_dir(folder)
        for left in [*self.live_dir.iterdir(), *self.kept_dir.glob(".*")]:
            shutil.rmtree(left, ignore_errors=True)

    @property
    def live_dir(self) -> Path:
        """Checkpoints of running sessions, a folder each."""
        return paths.checkpoints_dir() / "live"

    @property
    def kept_dir(self) -> Path:
        """Checkpoints that outlive their session, by name."""
        return paths.checkpoints_dir() / "kept"

    def kept(self) -> dict[str, Checkpoint]:
        """The kept ones that are whole, as far as their manifest tells."""
        found = {}
        for folder in sorted(self.kept_dir.glob("[!.]*")):
            try:
                found[folder.name] = checkpoints.load(folder, check=False)
            except CheckpointError as error:
                structlog.get_logger().warning("checkpoint_unusable", name=folder.name, error=error.message)
        return found

    def used_bytes(self) -> int:
        """What all checkpoints take of the disk."""
        kept = sum(file.stat().st_size for file in self.kept_dir.rglob("*") if file.is_file())
        return kept + sum(self.live_bytes.values())

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call something that reads or writes files."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)


class SessionCheckpoints:
    """The checkpoints of one lease. Lives as long as the lease, across rollbacks."""

    def __init__(self, store: CheckpointStore, lease: str) -> None:
        self._store = store
        self._folder = store.live_dir / lease
        self._entries: dict[str, Entry] = {}

    async def save(self, vm: PooledVM, name: str, *, keep: bool) -> dict[str, Any]:
        """Save the state of ``vm``, whose agent has fallen silent. A checkpoint of the same name is replaced.

        Raises CheckpointError; the session goes on in any case.
        """
        _check_name(name)
        if name not in self._entries and len(self._entries) >= MAX_PER_SESSION:
            raise CheckpointError(
                f"This session has {MAX_PER_SESSION} checkpoints, and may not have more.",
                "Delete one: `%checkpoint --delete NAME`.",
            )
        entry = await self._save(vm, name, keep)
        self._entries[name] = entry
        return self.facts(name, entry, None)

    async def fork(self, vm: PooledVM) -> str:
        """Save the state of ``vm`` for others to begin from it. Returns the token by which they ask for it."""
        token = secrets.token_hex(16)
        self._entries[token] = self._store.forks[token] = await self._save(vm, token, keep=False)
        return token

    async def delete(self, name: str) -> None:
        """Delete a checkpoint of this session, a fork's included, or one that was kept. Raises CheckpointError."""
        entry = self._entries.pop(name, None)
        self._store.forks.pop(name, None)
        if entry is not None:
            await self._drop(entry, files=True)
            return
        kept = self._store.kept().get(name)
        if kept is None:
            raise self._unknown(name)
        await self._store.run(kept.delete)

    def list(self, source: Source | None) -> list[dict[str, Any]]:
        """Facts about every checkpoint that this session can name. ``source``: of its VM."""
        mine = [self.facts(name, entry, None) for name, entry in self._entries.items() if name not in self._store.forks]
        others = [
            self.facts(name, Entry(checkpoint, None, True), _refusal(checkpoint, source))
            for name, checkpoint in self._store.kept().items()
            if name not in self._entries
        ]
        return sorted(mine + others, key=lambda facts: str(facts["created_at"]))

    async def find(self, name: str, source: Source | None) -> tuple[Checkpoint, Source]:
        """A checkpoint to go back to, and what it is a delta of. Raises CheckpointError, with the reason."""
        entry = self._entries.get(name)
        held = entry.source if entry is not None else None
        if entry is not None and held is not None and not entry.kept:
            return entry.checkpoint, held
        kept = self._store.kept().get(name)
        if kept is None:
            raise self._unknown(name)
        for usable in (held, source):
            if usable is not None and _refusal(kept, usable) is None:
                return await self._store.run(lambda: checkpoints.load(kept.folder, check=True)), usable
        raise CheckpointError(
            f"The session cannot go back to checkpoint {name!r}: {_OTHER_GOLDEN}.", "Delete it, and save a new one."
        )

    async def close(self) -> None:
        """The session has ended: what it did not keep goes."""
        for name, entry in self._entries.items():
            self._store.forks.pop(name, None)
            await self._drop(entry, files=not entry.kept)
        self._entries.clear()
        await self._store.run(lambda: shutil.rmtree(self._folder, ignore_errors=True))

    @staticmethod
    def facts(name: str, entry: Entry, refusal: str | None) -> dict[str, Any]:
        """What is told about a checkpoint. ``refusal``: why it cannot be used, if that is so."""
        checkpoint = entry.checkpoint
        return {
            "name": name,
            "created_at": checkpoint.created_at.isoformat(),
            "size_mib": round(checkpoint.size / (1 << 20), 1),
            "pause_ms": checkpoint.pause_ms,
            "kept": entry.kept,
            "refusal": refusal,
        }

    async def _save(self, vm: PooledVM, name: str, keep: bool) -> Entry:
        source, store = vm.source, self._store
        assert vm.machine is not None
        assert source is not None
        folder = (store.kept_dir if keep else self._folder) / f".{name}-{secrets.token_hex(4)}"
        async with store.saving:
            left = (store.limit_mib << 20) - await store.run(store.used_bytes)
            vm.go(VMState.CHECKPOINTING)
            try:
                checkpoint = await store.run(checkpoints.save, vm.machine, source.golden, folder, max(0, left))
            finally:
                if vm.state is VMState.CHECKPOINTING:
                    vm.go(VMState.LEASED)
            if name in self._entries:
                await self._drop(self._entries.pop(name), files=True)
            checkpoint = await store.run(_name, checkpoint, name)
            if not keep:
                store.live_bytes[checkpoint.folder] = checkpoint.disk_bytes
        store.saved += 1
        try:
            source.golden.hold()
        except GoldenError:
            return Entry(checkpoint, None, keep)
        return Entry(checkpoint, source, keep)

    async def _drop(self, entry: Entry, files: bool) -> None:
        if entry.source is not None:
            entry.source.golden.release()
        if files:
            self._store.live_bytes.pop(entry.checkpoint.folder, None)
            await self._store.run(entry.checkpoint.delete)

    def _unknown(self, name: str) -> CheckpointError:
        names = sorted({*self._entries, *self._store.kept()} - set(self._store.forks))
        known = f"There are: {', '.join(names)}." if names else "There is none: `%checkpoint NAME` saves one."
        return CheckpointError(f"There is no checkpoint {name!r}.", known)


def _refusal(checkpoint: Checkpoint, source: Source | None) -> str | None:
    golden = source.golden if source is not None else None
    if golden is not None and (golden.key, golden.build_id) == (checkpoint.golden_key, checkpoint.build_id):
        return None
    return _OTHER_GOLDEN


def _name(checkpoint: Checkpoint, name: str) -> Checkpoint:
    """Give a saved checkpoint its name; one that has it goes."""
    target = checkpoint.folder.with_name(name)
    shutil.rmtree(target, ignore_errors=True)
    checkpoint.folder.rename(target)
    return checkpoints.load(target, check=False)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CheckpointError(
            f"{str(name)[:100]!r} cannot be a checkpoint's name.",
            "A name has up to 64 letters, digits, dots, hyphens and underscores, and begins with a letter or a digit.",
        )
