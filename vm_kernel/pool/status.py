"""What ``pool status`` and ``%pool_status`` show: the service's state as plain data."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vm_kernel import __version__
from vm_kernel.pool.state import PooledVM, VMState
from vm_kernel.vm.memory import host_available_mib

if TYPE_CHECKING:
    from vm_kernel.pool.pool import ProfilePool
    from vm_kernel.pool.service import PoolService
    from vm_kernel.pool.session import Session


async def status_of(service: PoolService, history: bool = False) -> dict[str, Any]:
    """Everything, as JSON-able data. Sizes in MiB, durations in seconds or (``_ms``) milliseconds.

    With ``history``, also the samples of the last minutes, see ``pool/history.py``.
    """
    now = datetime.now(UTC)
    for profile in service.config.all_profiles():
        service.pool(profile.name)
    pools = list(service.pools.values())
    vms = [vm for pool in pools for vm in pool.vms]
    memory = await asyncio.get_running_loop().run_in_executor(None, _memory, service, vms)
    accelerator, transport = service.factory.accelerator, service.factory.transport
    return {
        "version": __version__,
        "pid": os.getpid(),
        "started_at": service.started_at.isoformat(),
        "uptime_s": round((now - service.started_at).total_seconds(), 1),
        "accelerator": {"kind": accelerator.kind, "reason": accelerator.reason} if accelerator else None,
        "transport": {"kind": transport.kind, "reason": transport.reason} if transport else None,
        "qemu_version": service.factory.qemu_version,
        "libvirt_version": service.factory.libvirt_version,
        "libvirt_uri": service.config.libvirt_uri or "qemu:///embed",
        "host_memory_available_mib": host_available_mib(),
        "metrics_port": _metrics_port(service),
        "acquire_ms": service.acquire_times.summary(),
        "clone_ms": _clone_summary(pools),
        "totals": {
            "leases": service.leases,
            "clones": sum(pool.clone_times.summary()["count"] for pool in pools),
            "failures": sum(pool.failures for pool in pools),
        },
        "profiles": [_profile(pool) for pool in pools],
        "vms": [
            _vm(vm, memory.get(vm.name), service.observer.session_of(vm))
            for vm in sorted(vms, key=lambda vm: vm.created_at)
        ],
    } | ({"history": service.observer.history.columns()} if history else {})


def _memory(service: PoolService, vms: list[PooledVM]) -> dict[str, float | None]:
    return {vm.name: service.factory.memory_mib(vm.machine) for vm in vms if vm.machine is not None}


def _clone_summary(pools: list[ProfilePool]) -> dict[str, Any]:
    """The busiest profile's: times of different profiles do not mix."""
    summaries = [pool.clone_times.summary() for pool in pools]
    return max(summaries, key=lambda summary: int(summary["count"]))


def _profile(pool: ProfilePool) -> dict[str, Any]:
    profile = pool.profile
    return {
        "name": profile.name,
        "image": profile.image,
        "memory_mib": profile.memory_mib,
        "vcpus": profile.vcpus,
        "min_warm": profile.min_warm,
        "max_vms": profile.max_vms,
        "allow": profile.allow,
        "outputs": profile.outputs,
        "warm": pool.count(VMState.WARM),
        "leased": pool.count(VMState.LEASED) + pool.count(VMState.CHECKPOINTING),
        "booting": pool.count(VMState.BOOTING),
        "waiting": pool.waiting,
        "prepared": len(pool.shells),
        "failures_by_cause": pool.failures_by_cause,
        "state": pool.state,
        "detail": pool.detail,
        "golden_key": pool.source.golden.key if pool.source else None,
        "golden_build": pool.source.golden.build_id if pool.source else None,
        "golden_created_at": pool.source.golden.created_at.isoformat() if pool.source else None,
    }


def _vm(vm: PooledVM, memory_mib: float | None, session: Session | None) -> dict[str, Any]:
    holder = vm.holder
    now = datetime.now(UTC)
    return {
        "name": vm.name,
        "profile": vm.profile,
        "state": vm.state.value,
        "age_s": round(vm.age_s, 1),
        "created_at": vm.created_at.isoformat(),
        "pid": vm.machine.pid if vm.machine else None,
        "unique_memory_mib": memory_mib,
        "lease": {
            "pid": holder.pid,
            "since_s": round((now - holder.since).total_seconds(), 1),
            "kernel_id": holder.kernel_id,
            "id": session.id if session else None,
        }
        if holder
        else None,
        "executions": session.executions if session else None,
        "cpu_s": round(session.cpu_s, 1) if session else None,
        "output_bytes": session.output_bytes if session else None,
        "flags": [asdict(flag) for flag in session.flags.values()] if session else [],
    }


def _metrics_port(service: PoolService) -> dict[str, Any] | None:
    port = service.observer.port
    return {"port": port.port, "error": port.error} if port is not None else None
