"""Where the VMs of one test have their files, and what tests do there."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vm_kernel.vm.golden import GoldenSnapshot, load_or_build
from vm_kernel.vm.hypervisor import Hypervisor
from vm_kernel.vm.spec import VMSpec


class Place(NamedTuple):
    """run: for Hypervisor.open. golden: empty at first. shared_golden: what other tests have built is there."""

    run: Path
    golden: Path
    shared_golden: Path

    def hypervisor(self) -> Hypervisor:
        """An open hypervisor; in a child process."""
        return Hypervisor.open(self.run)

    def snapshot(self, hv: Hypervisor, spec: VMSpec) -> GoldenSnapshot:
        """The snapshot that tests share."""
        return load_or_build(hv, spec, self.shared_golden, lambda _stage, _fraction: None)


def files_below(folder: Path) -> list[str]:
    """Sockets, consoles, logs and domain folders: what a VM has of files, and nothing that libvirt keeps for itself."""
    places = ("vm/*", "log/qemu/*", "lib/qemu/domain-*", "run/qemu/*.xml", "run/qemu/[!d]*.pid")
    return sorted(str(path.relative_to(folder)) for pattern in places for path in folder.glob(pattern))
