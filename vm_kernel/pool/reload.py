"""Reading the configuration anew while the service runs: profiles come, change and go; no lease is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from vm_kernel import paths
from vm_kernel.config import LoadedConfig, PoolConfig, Profile, load_config
from vm_kernel.errors import UnknownProfile, VMKernelError
from vm_kernel.image.store import open_image
from vm_kernel.pool.factory import publish_policy

if TYPE_CHECKING:
    from vm_kernel.pool.pool import ProfilePool
    from vm_kernel.pool.service import PoolService

#: settings that a running service cannot change
FIXED = (
    "accelerator",
    "audit_files",
    "audit_log",
    "audit_max_mib",
    "libvirt_uri",
    "metrics_port",
    "transport",
    "user",
)


class Changes(NamedTuple):
    """What a reload did, in words, and the settings that count only from the next start on."""

    changed: list[str]
    at_next_start: list[str]


class Reloading:
    """The reloads of one service, one at a time."""

    def __init__(self, service: PoolService, loaded: LoadedConfig) -> None:
        self._service = service
        self._loaded = loaded
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger()

    def begin(self) -> None:
        """SIGHUP: reload; what is wrong is logged."""
        self._spawn(self._reload_and_log())

    async def reload(self) -> Changes:
        """Read the files and apply what they say.

        Raises ConfigError, ImageError, PoolUnavailable (it is stopping); nothing has changed then.
        """
        async with self._lock:
            loaded = await asyncio.to_thread(_load, self._loaded)
            self._service.check_running()
            old, new = self._loaded.pool, loaded.pool
            at_next_start = [name for name in FIXED if getattr(old, name) != getattr(new, name)]
            changed = _settings_changed(old, new)
            self._loaded = loaded
            self._service.config = self._service.admission.config = new
            self._service.checkpoints.limit_mib = new.checkpoint_disk_mib
            for pool in list(self._service.pools.values()):
                changed += await self._apply(pool, new)
            self._log.info("reloaded", changed=changed, at_next_start=at_next_start)
            return Changes(changed, at_next_start)

    async def close(self) -> None:
        """Wait for nothing any more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _apply(self, pool: ProfilePool, config: PoolConfig) -> list[str]:
        """Bring one pool in line with the configuration."""
        name = pool.profile.name
        try:
            profile = config.profile(name)
        except UnknownProfile as error:
            if pool.ending is not None:
                return []
            await pool.end(error)
            paths.profile_facts(name).unlink(missing_ok=True)
            self._spawn(self._forget_when_empty(pool))
            return [f"profile {name} was removed; sessions that have a VM of it keep it"]
        before = pool.profile
        pool.configure(profile, config)
        if profile.outputs != before.outputs:
            publish_policy(profile)
        return _profile_changed(before, profile)

    async def _forget_when_empty(self, pool: ProfilePool) -> None:
        """Drop the pool of a removed profile after its last lease, unless the profile comes back."""
        while pool.ending is not None:
            if not pool.vms:
                if self._service.pools.get(pool.profile.name) is pool:
                    del self._service.pools[pool.profile.name]
                await pool.close(pool.ending)
                return
            await asyncio.sleep(0.5)

    async def _reload_and_log(self) -> None:
        try:
            await self.reload()
        except VMKernelError as error:
            self._log.error("reload_refused", error=error.message, hint=error.hint)
        except Exception:
            self._log.exception("reload_failed")

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _load(before: LoadedConfig) -> LoadedConfig:
    """The files, and whether the images that they newly name are there."""
    loaded = load_config(before)
    known = {profile.image for profile in before.pool.all_profiles()}
    for image in {profile.image for profile in loaded.pool.all_profiles()} - known:
        open_image(image)
    return loaded


def _settings_changed(old: PoolConfig, new: PoolConfig) -> list[str]:
    """Those that are not a profile's: they have a line of their own."""
    changed = []
    for name in sorted(PoolConfig.class_trait_names(config=True)):
        before, after = getattr(old, name), getattr(new, name)
        if before != after and name not in FIXED and name != "profiles":
            changed.append(f"{name}: {before} -> {after}")
    for name in sorted(set(new.profiles) - set(old.profiles)):
        changed.append(f"profile {name} was added")
    return changed


def _profile_changed(before: Profile, after: Profile) -> list[str]:
    return [
        f"profile {after.name}: {name} {value} -> {vars(after)[name]}"
        for name, value in vars(before).items()
        if value != vars(after)[name]
    ]
