"""The lease of this session's VM: getting it, and noticing that it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vm_kernel.errors import PoolUnavailable, VMDied, VMKernelError
from vm_kernel.kernel.background import Background

if TYPE_CHECKING:
    from vm_kernel.guest.channel import FrameStream
    from vm_kernel.guest.egress import Egress
    from vm_kernel.pool.client import Lease, PoolConnection
    from vm_kernel.pool.protocol import VMFacts


class Tenancy:
    """At most one VM, from the pool service. ``wake`` is called from another thread when there is news."""

    def __init__(self, profile: str, kernel_id: str, wake: Callable[[], None]) -> None:
        self.profile = profile
        #: what the pool service says it is waiting for
        self.progress = ""
        self.stream: FrameStream | None = None
        self.vm: VMFacts | None = None
        #: called with what the user of a session should know
        self.announce: Callable[[str], None] = lambda text: None
        self._kernel_id = kernel_id
        self._wake = wake
        self._attempt: Background[Lease] | None = None
        self._connection: PoolConnection | None = None
        #: a host magic's thread is asking the service something over the lease
        self._borrowed = False
        self._egress: Egress | None = None

    @property
    def acquiring(self) -> bool:
        """True while a VM is on its way."""
        return self._attempt is not None

    def prepare(self) -> None:
        """Import what acquire() will need. Called when the kernel listens already and nobody has asked yet."""
        import vm_kernel.guest.channel
        import vm_kernel.pool.client  # noqa: F401

    def acquire(self) -> None:
        """Ask for a VM, unless there is one or one is on its way."""
        if self.stream is None and self._attempt is None:
            self.progress = ""
            self._attempt = Background(self._ask, self._wake)

    def collect(self) -> bool:
        """Take the VM if it has come; True if it has just now. Raises VMKernelError if there is none to be had."""
        if self._attempt is None or not self._attempt.done:
            return False
        attempt, self._attempt = self._attempt, None
        try:
            lease = attempt.result()
        except VMKernelError:
            raise
        except Exception as error:
            raise PoolUnavailable(
                f"No virtual machine could be had: {type(error).__name__}: {error}.", "Try `vm-kernel doctor`."
            ) from error
        self._connection = lease.connection
        self._move_in(lease)
        return True

    def _move_in(self, lease: Lease) -> None:
        from vm_kernel.guest.channel import FrameStream

        self.vm, self.stream = lease.vm, FrameStream(lease.stream)
        if self.vm.egress is not None or self._egress is not None:
            proxy = self._proxy()
            if self.vm.egress is not None:
                proxy.begin()
            self.pump()

    def lease_fd(self) -> int:
        """Descriptor that becomes readable when the pool service has news; -1 without a lease, or while it is lent."""
        return self._connection.fileno() if self._connection and not self._borrowed else -1

    def read_news(self) -> VMKernelError | None:
        """Why the VM has ended, if that is the news.

        If it is that the service itself has ended, the VM goes on, with nobody who looks after it; its stream tells
        when it ends.
        """
        if self._connection is None or self._borrowed:
            return None
        try:
            while (event := self._connection.read_event(0.0)) is not None:
                if event["event"] == "draining":
                    self.announce(
                        f"The pool of virtual machines is being shut down: this session ends in "
                        f"{event['deadline_s']:.0f} s at the latest. Save what you need."
                    )
                if event["event"] == "vm_gone":
                    return VMDied(
                        f"The virtual machine of this session has ended: {event.get('reason')}",
                        "Its state is lost. Restart the kernel to get a fresh VM.",
                    )
        except VMKernelError:
            self._connection.close()
            self._connection = None
        return None

    def note(self, event: str, fields: dict[str, Any]) -> bool:
        """Tell the pool service what was done with the VM. Never blocks; False: it could not be told."""
        return self._connection is not None and self._connection.note(event, fields)

    @contextmanager
    def borrowed(self) -> Iterator[PoolConnection]:
        """The lease's connection, for a host magic's thread. Raises PoolUnavailable if the service has ended."""
        connection = self._connection
        if connection is None:
            raise PoolUnavailable(
                "The pool service that gave this session its VM has ended; the session goes on without it.",
                "Checkpoints need it. Restart the kernel to get a new VM.",
            )
        self._borrowed = True
        try:
            yield connection
        finally:
            self._borrowed = False
            self._wake()

    def replace(self, lease: Lease) -> None:
        """Go on in another VM that has come over the same lease."""
        if self.stream is not None:
            self.stream.close()
        self._move_in(lease)

    # ---- the egress proxy: not even imported for sessions that may reach nothing, unless their VM tries to

    def from_proxy(self, body: bytes) -> None:
        """The guest has sent a PROXY message."""
        (self._egress or self._proxy()).feed(body)

    def pump(self) -> None:
        """Called every turn: what the proxy has for the guest and for the pool service."""
        if self._egress is not None and self.stream is not None and self.stream.fileno() >= 0:
            self._egress.pump(self.stream)

    def _proxy(self) -> Egress:
        """A new one, for the present VM; what the session may still transfer goes on from the one before."""
        from vm_kernel.guest.egress import Egress

        before, vm = self._egress, self.vm
        if before is not None:
            before.close()
        settings, profile = (vm.egress, vm.profile) if vm is not None else (None, self.profile)
        budget = before.budget if before is not None else None
        self._egress = Egress(settings, profile, self._wake, lambda fields: self.note("egress", fields), budget)
        return self._egress

    def renew(self) -> None:
        """Give the VM back and ask for another."""
        self.close()
        self.stream = self.vm = None
        self.acquire()

    def close(self) -> None:
        """Give the VM back, now: the pool destroys it."""
        if self._egress is not None:
            self._egress.close()
            self._egress = None
        if self.stream is not None:
            self.stream.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self) -> Lease:
        """In a thread."""
        from vm_kernel.pool.client import PoolConnection

        connection = PoolConnection.open()
        try:
            return connection.acquire(self.profile, self._heard, self._kernel_id)
        except BaseException:
            connection.close()
            raise

    def _heard(self, progress: str) -> None:
        self.progress = progress
        self._wake()
