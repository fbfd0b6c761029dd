"""What the holder of a lease is told of its VM: what it is, and what its profile permits now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm_kernel.errors import UnknownProfile
from vm_kernel.pool.protocol import VMFacts
from vm_kernel.pool.state import PooledVM

if TYPE_CHECKING:
    from vm_kernel.config_egress import Egress
    from vm_kernel.pool.factory import VMFactory
    from vm_kernel.pool.pool import ProfilePool


def facts_of(vm: PooledVM, pool: ProfilePool, factory: VMFactory) -> VMFacts:
    """For the holder of a lease, when it gets that VM."""
    source = vm.source
    assert source is not None
    spec = source.golden.spec
    files, outputs, egress = _permissions(pool)
    return VMFacts(
        name=vm.name,
        profile=vm.profile,
        accelerator=spec.accelerator,
        transport=spec.transport,
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        image=source.image.name,
        image_digest=source.image.digest,
        golden_key=source.golden.key,
        created_at=vm.created_at.isoformat(),
        qemu_version=factory.qemu_version,
        libvirt_version=factory.libvirt_version,
        warm_ms=vm.warm_ms,
        cid=vm.machine.cid if vm.machine is not None else None,
        output_stall_s=pool.config.output_stall_s,
        audit_code=pool.config.audit_code,
        files=files,
        outputs=outputs,
        egress=egress._asdict() if egress is not None else None,
        accelerator_reason=factory.accelerator.reason if factory.accelerator else "",
    )


def _permissions(pool: ProfilePool) -> tuple[str, str, Egress | None]:
    """What holds now, whenever the VM was made; of a profile that is no longer configured: nothing is allowed."""
    if isinstance(pool.ending, UnknownProfile):
        return "off", "isolated", None
    return pool.profile.files, pool.profile.outputs, pool.config.egress(pool.profile)
