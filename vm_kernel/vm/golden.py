"""Golden snapshots: a template VM that was booted once, warm, as an image of its RAM plus its device state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from vm_kernel.vm.hypervisor import Hypervisor
from vm_kernel.vm.spec import VMSpec

#: progress(stage, fraction of the whole between 0 and 1); called from the thread that builds.
Progress = Callable[[str, float], None]


class GoldenSnapshot:
    """A snapshot that clones can be made from. Its RAM is in a sealed memfd of this process.

    key: hash of everything that the state depends on. folder: where its files are (``<folder>/<key>``).
    """

    key: str
    spec: VMSpec
    folder: Path
    memfd: int

    def close(self) -> None:
        """Give the RAM image back. Running clones keep theirs; no new ones can be made. Idempotent."""
        raise NotImplementedError


def golden_key(spec: VMSpec, facts: Mapping[str, str]) -> str:
    """The name of the snapshot for this spec on this host. ``facts`` is :meth:`Hypervisor.facts`."""
    raise NotImplementedError


def load_or_build(hv: Hypervisor, spec: VMSpec, folder: Path, progress: Progress) -> GoldenSnapshot:
    """The snapshot of ``spec``: loaded from ``folder`` (checked), or built anew if missing, stale or damaged.

    Building boots a template VM (some 10 to 40 s under emulation). Raises GoldenError, or HostError if the disk or
    the memory is full; nothing half-made is left. Called by the pool when a profile is first wanted.
    """
    raise NotImplementedError
