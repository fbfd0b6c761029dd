"""What Prometheus gets to see: the service's own registry. How it is served is in ``http``.

Counters are kept here by whoever counts; what is a state of the service is read when somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from vm_kernel import __version__
from vm_kernel.pool.metrics import Durations
from vm_kernel.pool.state import VMState
from vm_kernel.pool.status import memory_available_mib

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from vm_kernel.pool.service import PoolService

#: of what ``Metrics.text`` gives
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: states that can be seen: what is dead is not there
_STATES = [state for state in VMState if state is not VMState.DEAD]


class Metrics:
    """The counters of one pool service, and the text of all its metrics."""

    def __init__(self, service: PoolService) -> None:
        self._registry = registry = CollectorRegistry()
        self.refused = Counter(
            "vm_kernel_refused_requests", "Requests that ended in an error, by its class.", ["error"], registry=registry
        )
        ProcessCollector(registry=registry)
        registry.register(_ServiceState(service))

    def text(self) -> str:
        """Everything, in Prometheus' text format. Some milliseconds; nothing in it blocks."""
        return generate_latest(self._registry).decode()


class _ServiceState(Collector):
    """Reads the service when it is scraped, so that nothing has to be kept up to date."""

    def __init__(self, service: PoolService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Called by the registry for each scrape, on the service's event loop."""
        yield self._info()
        yield from self._profiles()
        yield from self._durations()
        memory = GaugeMetricFamily("vm_kernel_host_memory_available_bytes", "Memory that the host could still give.")
        memory.add_metric([], memory_available_mib() * 1024.0 * 1024.0)
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
        failures = CounterMetricFamily("vm_kernel_clone_failures", "Clones that have failed.", labels=["profile"])
        for name, pool in self._service.pools.items():
            for state in _STATES:
                vms.add_metric([name, state.value], pool.count(state))
            limit.add_metric([name], pool.profile.max_vms)
            waiting.add_metric([name], pool.waiting)
            broken.add_metric([name], pool.state == "broken")
            failures.add_metric([name], pool.failures)
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


def _add(family: HistogramMetricFamily, labels: list[str], durations: Durations) -> None:
    family.add_metric(labels, durations.buckets(), durations.total_s)
