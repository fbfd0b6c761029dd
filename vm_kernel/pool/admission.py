"""May another VM be started? Only if the host has the memory for it, whatever the VMs that run already still take."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vm_kernel.config import PoolConfig, Profile
from vm_kernel.pool.state import PooledVM
from vm_kernel.vm.memory import available_mib, rough_unique_memory
from vm_kernel.vm.spec import VMSpec

#: MiB of the host's memory that a QEMU takes beside its guest's: code cache of the emulation, devices, heap
OVERHEAD_MIB = 96


class Admission:
    """Compares what VMs have been promised with what the host has. One for all profiles; no call blocks.

    A clone begins with a few MiB of its own and may come to own a copy of all its memory. What the running ones have
    not taken yet, and all that a new one may take, must not be more than the free memory times ``memory_overcommit``.
    """

    def __init__(self, config: PoolConfig, vms: Callable[[], Iterable[PooledVM]]) -> None:
        self.config = config
        self._vms = vms

    def refusal(self, wanted: Profile | VMSpec) -> str:
        """Why no VM of that kind can be started now, to show to a person; empty if it can.

        One that shares no memory takes all of it when it starts.
        """
        available = available_mib() - self.config.memory_reserve_mib
        needed = wanted.memory_mib + OVERHEAD_MIB
        promised = sum(_not_taken_mib(vm) for vm in self._vms())
        room = needed <= available or wanted.share_memory
        if room and needed + promised <= available * self.config.memory_overcommit:
            return ""
        return (
            f"the host has not the memory for another VM: {max(0, available)} MiB are free, it may take {needed}, "
            f"and those that run may take {promised} more"
        )


def _not_taken_mib(vm: PooledVM) -> int:
    """What this VM may still take of the host's memory."""
    if vm.source is None:
        return 0
    most = vm.source.golden.spec.memory_mib + OVERHEAD_MIB
    taken = rough_unique_memory(vm.machine.pid) >> 20 if vm.machine is not None else 0
    return max(0, most - taken)
