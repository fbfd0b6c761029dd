"""What one QEMU may take of the host, whatever its guest does: limits that every host has, also without cgroups.

libvirt's seccomp filter already forbids QEMU to start processes and to change these limits. What all VMs together may
take is the business of a cgroup (``pool install-service``), and of the pool's own counting (``pool.admission``).
"""

from __future__ import annotations

import resource
from contextlib import suppress

#: The largest file that a QEMU may write: its log, which a guest can provoke, the console of a template, and the state
#: of its devices, 400 kB.
FILE_BYTES = 8 << 20
#: Descriptors: a VM has some 25.
DESCRIPTORS = 256
#: Writable memory of QEMU's own, in MiB: code that it has translated, the stacks of its threads, its devices' queues.
OWN_MEMORY_MIB = 1024
#: ... and for each processor of the guest: a thread's stack and what it keeps.
VCPU_MEMORY_MIB = 16


def confine(pid: int, memory_mib: int, vcpus: int) -> None:
    """Limit a QEMU that has not yet run a guest's instruction. Raises ProcessLookupError if it has ended.

    Called by ``hypervisor`` right after libvirt has started it. What a QEMU wants beyond them it does not get: then it
    goes on without, gives up, or is ended by the host's kernel. One that another user's libvirt runs
    (``qemu:///system``) has that libvirt's limits.
    """
    # QEMU may map the guest's RAM twice: as libvirt's own memory, which stays empty, and as the golden image
    data = 2 * memory_mib + OWN_MEMORY_MIB + vcpus * VCPU_MEMORY_MIB << 20
    for limit, value in (
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_DATA, data),
        (resource.RLIMIT_NOFILE, DESCRIPTORS),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(PermissionError):
            _, hard = resource.prlimit(pid, limit)
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.prlimit(pid, limit, (most, most))
