"""The connection to libvirt: opened once by the pool service, shared by its threads."""

from __future__ import annotations

from pathlib import Path


class Hypervisor:
    """libvirt, by default its QEMU driver inside this very process (``qemu:///embed``). Thread-safe."""

    @classmethod
    def open(cls, run_dir: Path, uri: str = "") -> Hypervisor:
        """Connect. Clears away what a crashed predecessor left in ``run_dir`` (see destroy_leftovers).

        Raises HostError if libvirt or QEMU is missing, or another process uses the same ``run_dir``.
        Once in the life of a process: libvirt's embedded driver cannot be opened twice with different roots.
        """
        raise NotImplementedError

    def destroy_leftovers(self) -> int:
        """Destroy every VM of ours that no living process owns, and remove stray files. Returns how many VMs."""
        raise NotImplementedError

    def facts(self) -> dict[str, str]:
        """Versions and host properties that a golden snapshot depends on."""
        raise NotImplementedError

    def close(self) -> None:
        """Destroy what still runs, disconnect, remove sockets, logs and locks. Idempotent."""
        raise NotImplementedError
