"""What Prometheus gets to see: the service's own registry. How it is served is in ``http``.

Counters are kept here by whoever counts; what is a state of the service is read when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from vm_kernel import __version__
from vm_kernel.pool import health
from vm_kernel.pool.metrics import BUCKETS_S, Durations
from vm_kernel.pool.state import VMState
from vm_kernel.vm.memory import host_available_mib

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from vm_kernel.pool.observer import Observer
    from vm_kernel.pool.service import PoolService

#: of what ``Metrics.text`` gives
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: states that can be seen: what is dead is not there
_STATES = [state for state in VMState if state is not VMState.DEAD]


class Metrics:
    """The counters of one pool service, and the text of all its metrics."""

    def __init__(self, service: PoolService, observer: Observer) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vm_kernel_{name}", text, labels, registry=registry)

        self.refused = counter("refused_requests", "Requests that ended in an error, by its class.", "error")
        self.executions = counter("executions", "Cells that have ended, by status.", "profile", "status")
        self.execution_seconds = Histogram(
            "vm_kernel_execution_seconds", "How long cells ran.", ["profile"], buckets=BUCKETS_S, registry=registry
        )
        self.output_bytes = counter("output_bytes", "Output of cells, as the guest sent it.", "profile")
        self.file_bytes = counter("file_bytes", "Files put into VMs and got from them.", "profile", "action")
        self.egress = counter("egress", "Connections that VMs asked for, by outcome.", "profile", "verdict")
        self.egress_bytes = counter("egress_bytes", "Bytes of ended connections of VMs.", "profile", "direction")
        self.checkpoints = counter("checkpoints", "Checkpoints, rollbacks and forks.", "profile", "action")
        self.notes_dropped = counter("notes_dropped", "Notes of sessions that were wrong or too many.", "reason")
        ProcessCollector(registry=registry)
        registry.register(_ServiceState(service, observer))

    def text(self) -> str:
        """Everything, in Prometheus' text format. Some milliseconds; nothing in it blocks."""
        return generate_latest(self._registry).decode()


class _ServiceState(Collector):
    """Reads the service when it is scraped, so that nothing has to be kept up to date."""

    def __init__(self, service: PoolService, observer: Observer) -> None:
        self._service = service
        self._observer = observer

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for each scrape, on the service's event loop."""
        yield self._info()
        yield from self._profiles()
        yield from self._durations()
        yield from self._sessions()
        memory = GaugeMetricFamily("vm_kernel_host_memory_available_bytes", "Memory that the host could still give.")
        memory.add_metric([], host_available_mib() * 1024.0 * 1024.0)
        yield memory

    def _info(self) -> Metric:
        accelerator, transport = self._service.factory.accelerator, self._service.factory.transport
        info = GaugeMetricFamily(
            "vm_kernel_info", "Always 1: what this service is.", labels=["version", "accelerator", "transport"]
        )
        info.add_metric(
            [__version__, accelerator.kind if accelerator else "", transport.kind if transport else ""], 1.0
        )
        return info

    def _profiles(self) -> Iterator[Metric]:
        vms = GaugeMetricFamily("vm_kernel_vms", "VMs by profile and state.", labels=["profile", "state"])
        limit = GaugeMetricFamily("vm_kernel_vms_max", "VMs that a profile may have.", labels=["profile"])
        waiting = GaugeMetricFamily("vm_kernel_waiting", "Lease requests that have no VM yet.", labels=["profile"])
        broken = GaugeMetricFamily("vm_kernel_profile_broken", "1 while a profile gives no VMs.", labels=["profile"])
        failures = CounterMetricFamily("vm_kernel_failures", "VMs that failed, by cause.", labels=["profile", "cause"])
        for profile in self._service.config.all_profiles():
            self._service.pool(profile.name)
        for name, pool in self._service.pools.items():
            for state in _STATES:
                vms.add_metric([name, state.value], pool.count(state))
            limit.add_metric([name], pool.profile.max_vms)
            waiting.add_metric([name], pool.waiting)
            broken.add_metric([name], pool.state == "broken")
            for cause, count in pool.failures_by_cause.items():
                failures.add_metric([name, cause], count)
        yield from (vms, limit, waiting, broken, failures)
        leases = CounterMetricFamily("vm_kernel_leases", "Leases that have begun.")
        leases.add_metric([], self._service.leases)
        yield leases

    def _durations(self) -> Iterator[Metric]:
        acquire = HistogramMetricFamily("vm_kernel_acquire_seconds", "From a lease's request to its VM.")
        _add(acquire, [], self._service.acquire_times)
        clone = HistogramMetricFamily(
            "vm_kernel_clone_seconds", "From the start of a VM's QEMU to a guest that answers.", labels=["profile"]
        )
        restore = HistogramMetricFamily(
            "vm_kernel_restore_seconds", "Of which the golden snapshot's state was loaded.", labels=["profile"]
        )
        for name, pool in self._service.pools.items():
            _add(clone, [name], pool.clone_times)
            _add(restore, [name], pool.restore_times)
        yield from (acquire, clone, restore)

    def _sessions(self) -> Iterator[Metric]:
        flagged = GaugeMetricFamily("vm_kernel_flagged_vms", "Sessions over a limit.", labels=["profile", "flag"])
        sessions = list(self._observer.sessions.values())
        for name in self._service.pools:
            for kind in health.KINDS:
                count = sum(kind in session.flags for session in sessions if session.vm.profile == name)
                flagged.add_metric([name, kind], count)
        own = GaugeMetricFamily("vm_kernel_vm_memory_bytes", "Memory that VMs have for themselves, all together.")
        sample = self._observer.history.last
        own.add_metric([], (sample.own_mib if sample else 0) * 1024.0 * 1024.0)
        lost = CounterMetricFamily("vm_kernel_audit_failures", "Events that the audit log could not take.")
        lost.add_metric([], self._observer.audit.failures)
        yield from (flagged, own, lost)


def _add(family: HistogramMetricFamily, labels: list[str], durations: Durations) -> None:
    family.add_metric(labels, durations.buckets(), durations.total_s)
