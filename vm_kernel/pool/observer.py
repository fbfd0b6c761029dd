"""Whoever watches the pool service: one object that the service tells what happens. It never decides anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm_kernel.errors import VMKernelError
from vm_kernel.pool.http import MetricsPort
from vm_kernel.pool.prometheus import Metrics

if TYPE_CHECKING:
    from vm_kernel.pool.service import PoolService


class Observer:
    """Lives as long as the service. Everything is called on its event loop; nothing raises."""

    def __init__(self, service: PoolService) -> None:
        self.metrics = Metrics(service)
        port = service.config.metrics_port
        self.port = MetricsPort(port, self.metrics.text) if port else None

    async def start(self) -> None:
        """The service listens."""
        if self.port is not None:
            await self.port.start()

    def close(self) -> None:
        """The service ends."""
        if self.port is not None:
            self.port.close()

    def refused(self, error: VMKernelError) -> None:
        """A request ended in an error."""
        self.metrics.refused.labels(type(error).__name__).inc()
