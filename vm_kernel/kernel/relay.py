"""The main loop: client messages to the guest, the guest's back to clients, and everything that ends a session.

Messages are looked into no further than needed: what the host answers itself is in ``clientside``, what the guest
may say in ``guestside``. Single-threaded; other threads only wake it.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import zmq

from vm_kernel.errors import GuestProtocolError, VMDied, VMKernelError
from vm_kernel.guest.messages import WireError
from vm_kernel.kernel.answers import refuse
from vm_kernel.kernel.clientside import ClientSide
from vm_kernel.kernel.guestside import GuestSide
from vm_kernel.kernel.outlet import Outlet
from vm_kernel.kernel.refusals import Refusals
from vm_kernel.kernel.requests import Requests
from vm_kernel.kernel.sockets import LINGER_MS, Sockets
from vm_kernel.kernel.tenancy import Tenancy
from vm_kernel.kernel.wire import Signer, parse_client

#: messages taken from one socket before the others get their turn
BURST = 100
#: seconds that the end of a VM waits for the other half of the story: the pool's reason, the guest's last output
LAST_WORDS_S = 0.5
#: bytes that wait for the guest; beyond, clients wait as well
MAX_BACKLOG = 64 * 1024 * 1024
#: messages on iopub that wait for clients; beyond, requests on shell wait as well
MAX_QUEUED = 1000


class Wakeup:
    """Wakes the loop from a signal handler or another thread."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)

    def fileno(self) -> int:
        """For the poller."""
        return self._reading.fileno()

    def wake(self) -> None:
        """Make the loop turn. From any thread."""
        with contextlib.suppress(BlockingIOError):  # then it is awake enough
            self._writing.send(b"\0")

    def read(self) -> bytes:
        """The signals that have arrived; zeros for calls of wake()."""
        return self._reading.recv(4096)


class Relay:
    """One kernel's main loop."""

    def __init__(self, sockets: Sockets, signer: Signer, profile: str, kernel_id: str) -> None:
        self._sockets = sockets
        self._signer = signer
        self._wakeup = Wakeup()
        self._requests = Requests()
        self._outlet = Outlet(sockets, signer, self._requests)
        self._tenancy = Tenancy(profile, kernel_id, self._wakeup.wake)
        self._tenancy.announce = self._outlet.announce
        self._guest = GuestSide(self._outlet, self._requests, self._tenancy, self._wakeup.wake)
        self._client = ClientSide(self._outlet, self._requests, self._tenancy, self._guest, sockets.ports)
        self._poller = zmq.Poller()
        self._polled: dict[int, int] = {}
        self._cause: VMKernelError | None = None
        self._deadline = 0.0
        self._refusals = Refusals("client")

    def run(self, parent_fd: int = -1) -> int:
        """Relay until the session ends. The process's exit status: 0 after a shutdown, 1 if the VM died.

        ``parent_fd`` becomes readable when the process that started this one has gone.
        """
        for sock in (self._sockets.shell, self._sockets.control, self._sockets.stdin, self._sockets.iopub):
            self._poller.register(sock, zmq.POLLIN)
        self._poller.register(self._wakeup.fileno(), zmq.POLLIN)
        if parent_fd >= 0:
            self._poller.register(parent_fd, zmq.POLLIN)
        self._tenancy.prepare()
        while self._client.exit_status is None:
            self._watch_guest()
            ready: dict[Any, int] = dict(self._poller.poll(self._timeout_ms()))
            if parent_fd in ready:
                return 1
            self._turn(ready)
            self._outlet.iopub.flush()
            if self._cause is not None and time.monotonic() >= self._deadline:
                self._bury(self._cause)
                return 1
        return self._client.exit_status

    def close(self) -> None:
        """Give the VM back and let clients have what has been sent. The last thing that the process does."""
        self._guest.evaluations.forget()
        self._tenancy.close()
        self._outlet.iopub.finish(LINGER_MS / 1000)
        self._sockets.close()

    def _turn(self, ready: dict[Any, int]) -> None:
        """A bounded amount of each kind of work that is ready."""
        if self._wakeup.fileno() in ready:
            self._woken()
        if self._tenancy.lease_fd() in ready:
            self._lease_news()
        self._serve_guest(ready)
        # what the guest has just said may be what a host cell has waited for
        self._guest.evaluations.advance()
        if self._sockets.iopub in ready:
            self._burst(self._sockets.iopub, self._subscribed)
        for channel in ("control", "shell", "stdin"):
            sock: zmq.Socket[bytes] = getattr(self._sockets, channel)
            if sock in ready:
                self._burst(sock, partial(self._from_client, channel))
        self._client.advance()
        self._tenancy.pump()

    def _timeout_ms(self) -> int | None:
        moments = [self._client.next_event_in_s(), self._outlet.iopub.next_try_in_s()]
        if self._cause is not None:
            moments.append(max(0.0, self._deadline - time.monotonic()))
        due = [moment for moment in moments if moment is not None]
        return int(1000 * min(due)) + 1 if due else None

    def _watch_guest(self) -> None:
        """Poll the guest's stream and the lease for what we can use now, and clients unless the guest lags behind."""
        wanted = {}
        stream = self._tenancy.stream
        if stream is not None and stream.fileno() >= 0:
            room = self._guest.ready_for_more and self._outlet.iopub.has_room
            reading = zmq.POLLIN if room else 0
            if events := reading | (zmq.POLLOUT if stream.wants_write else 0):
                wanted[stream.fileno()] = events
        if (fd := self._tenancy.lease_fd()) >= 0:
            wanted[fd] = zmq.POLLIN
        if wanted != self._polled:
            for fd in self._polled.keys() - wanted.keys():
                self._poller.unregister(fd)
            for fd, events in wanted.items():
                self._poller.register(fd, events)
            self._polled = wanted
        self._poller.register(self._sockets.shell, 0 if self._lagging else zmq.POLLIN)

    @property
    def _lagging(self) -> bool:
        """True while requests would only pile up: before the guest, or in answers that clients do not take."""
        stream = self._tenancy.stream
        backlog = 0 if stream is None else stream.queued_bytes
        return backlog > MAX_BACKLOG or self._outlet.iopub.queued > MAX_QUEUED

    def _burst(self, sock: zmq.Socket[bytes], handle: Callable[[list[bytes]], None]) -> None:
        for _ in range(BURST):
            try:
                frames = sock.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            handle(frames)
            if sock is self._sockets.shell and self._lagging:
                return

    def _subscribed(self, frames: list[bytes]) -> None:
        if len(frames) == 1 and frames[0][:1] == b"\x01":
            self._outlet.welcome(frames[0][1:])
            self._client.has_listeners = True

    def _from_client(self, channel: str, frames: list[bytes]) -> None:
        try:
            message = parse_client(frames, self._signer, channel)
        except WireError as error:
            self._refusals.note(str(error), channel=channel)
            return
        self._client.handle(channel, message)

    def _woken(self) -> None:
        signals = self._wakeup.read()
        if signal.SIGTERM in signals:
            self._client.exit_status = 0
        if signal.SIGINT in signals:
            self._client.interrupt(None)
        self._client.look_for_vm()
        if self._tenancy.vm is not None:
            self._outlet.iopub.stall_s = self._tenancy.vm.output_stall_s
        self._guest.evaluations.advance()

    # ---- the end of the VM

    def _serve_guest(self, ready: dict[Any, int]) -> None:
        stream = self._tenancy.stream
        if stream is None:
            return
        events = ready.get(stream.fileno(), 0)
        try:
            if events & zmq.POLLOUT:
                stream.flush()
            if events & ~zmq.POLLOUT:
                self._guest.receive(stream)
            self._guest.handle_received()
        except EOFError:
            stream.close()
            self._die(
                VMDied(
                    "The virtual machine of this session has ended unexpectedly.",
                    "Its state is lost. Restart the kernel to get a fresh VM.",
                ),
                certain=self._tenancy.lease_fd() < 0,
            )
        except (VMDied, GuestProtocolError) as error:
            self._die(error, certain=True)

    def _lease_news(self) -> None:
        cause = self._tenancy.read_news()
        if cause is not None:
            stream = self._tenancy.stream
            self._die(cause, certain=stream is None or stream.fileno() < 0)

    def _die(self, cause: VMKernelError, certain: bool) -> None:
        """Note the cause of death. The pool's word replaces a mere end of the stream; ``certain``: wait no longer."""
        now = time.monotonic()
        if self._cause is None:
            self._deadline = now + LAST_WORDS_S
        if self._cause is None or certain:
            self._cause = cause
        if certain:
            self._deadline = now

    def _bury(self, cause: VMKernelError) -> None:
        """Tell everybody who waits for an answer."""
        for request in self._requests.open():
            refuse(self._outlet, request, cause)
        self._guest.forget()
