"""What the VMs of one profile are forked from: opened in the background, made anew when it is old or does not fit.

How a golden snapshot is made and loaded is in ``vm.golden``; here is when, and which one is in use.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from vm_kernel.errors import GoldenError, VMKernelError
from vm_kernel.pool.factory import Source
from vm_kernel.pool.failures import as_ours

if TYPE_CHECKING:
    from vm_kernel.pool.pool import ProfilePool

#: after a snapshot that could not be made anew, the next try waits so many seconds; each time twice as long
_RENEW_AGAIN_S = 60.0
_RENEW_AGAIN_MAX_S = 3600.0


class GoldenKeeper:
    """The golden snapshot of one pool.

    source: the one in use. progress: what is being done to get the first one, in words. notice: why there is no newer.
    """

    def __init__(self, pool: ProfilePool) -> None:
        self.source: Source | None = None
        self.progress = "not used yet"
        self.notice = ""
        self._pool = pool
        self._opening = False
        self._renewing = False
        self._outdated = False
        self._renew_at = 0.0
        self._renew_pause_s = _RENEW_AGAIN_S

    def open(self) -> None:
        """Load or build it in the background, unless there is one or one is on its way."""
        if self.source is None and not self._opening:
            self._opening = True
            self._pool.tasks.spawn(self._open())

    def drop(self) -> None:
        """Give the snapshot up. It goes when no clone is just being made from it."""
        if self.source is not None:
            self.source.golden.close()
            self.source = None

    def renew_if_due(self) -> None:
        """Make a new one in the background if this one is too old, or does not fit any more."""
        pool, source = self._pool, self.source
        if source is None or self._renewing or pool.error is not None or time.monotonic() < self._renew_at:
            return
        max_age_s, now = pool.config.golden_max_age_s, datetime.now(UTC)
        if self._outdated:
            not_before = None
        elif max_age_s and (now - source.golden.created_at).total_seconds() > max_age_s:
            not_before = now - timedelta(seconds=max_age_s)
        else:
            return
        self._renewing = True
        pool.tasks.spawn(self._renew(not_before))

    async def renew_if_changed(self) -> None:
        """Make a new one if image, agent or settings are not those of this one any more."""
        pool = self._pool
        if self.source is None:
            return
        try:
            self._outdated = not await pool.tasks.in_executor(pool.factory.fits, self.source, pool.profile)
        except VMKernelError as error:
            self._could_not_renew(error)
            return
        if self._outdated:
            self._renew_at, self._renew_pause_s = 0.0, _RENEW_AGAIN_S
            self.renew_if_due()

    async def _open(self) -> None:
        self._say("opening the golden snapshot")
        try:
            source = await self._made(self._say, None)
        except VMKernelError as error:
            if self._pool.ending is None:
                self._pool.failed(error, broken=True)
            return
        finally:
            self._opening = False
        self._say("")
        self._pool.trouble.retry_now()
        self._adopt(source)

    async def _renew(self, not_before: datetime | None) -> None:
        """The old one is used meanwhile, and afterwards too if this fails."""
        self._pool.log.info("golden_renewal_begins", outdated=self._outdated)
        try:
            source = await self._made(lambda _stage: None, not_before)
        except VMKernelError as error:
            self._could_not_renew(error)
            return
        finally:
            self._renewing = False
        self.notice, self._outdated, self._renew_pause_s = "", False, _RENEW_AGAIN_S
        self._adopt(source)

    async def _made(self, say: Callable[[str], None], not_before: datetime | None) -> Source:
        """Raises VMKernelError, whatever it is that went wrong."""
        pool, loop = self._pool, asyncio.get_running_loop()

        def progress(stage: str, fraction: float) -> None:
            if pool.ending is not None:
                # called several times a second while the template boots: the one way to stop that thread
                raise GoldenError("The pool service is stopping.")
            loop.call_soon_threadsafe(say, f"{stage}: {fraction:.0%}" if fraction > 0 else stage)

        try:
            return await pool.tasks.in_executor(pool.factory.source, pool.profile, progress, not_before)
        except VMKernelError:
            raise
        except Exception as error:
            pool.log.exception("golden_failed")
            raise as_ours(error, "The golden snapshot failed") from error

    def _adopt(self, source: Source) -> None:
        """Fork from it from now on. VMs of the old one have their own mapping of that and live on."""
        old, self.source = self.source, source
        if old is not None:
            old.golden.close()
        golden = source.golden
        self._pool.log.info("golden_ready", key=golden.key, build=golden.build_id, built=golden.built)
        self._pool.refill()

    def _could_not_renew(self, error: VMKernelError) -> None:
        if self._pool.ending is not None:
            return
        self._renew_at = time.monotonic() + self._renew_pause_s
        self._pool.log.error("golden_renewal_failed", error=error.message, hint=error.hint, retry_s=self._renew_pause_s)
        self._renew_pause_s = min(2 * self._renew_pause_s, _RENEW_AGAIN_MAX_S)
        self.notice = f"the golden snapshot could not be made anew, the old one stays in use: {error.message}"
        self._pool.trouble.count("rotation")

    def _say(self, progress: str) -> None:
        self.progress = progress
        self._pool.queue.tell()
