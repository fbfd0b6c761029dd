"""What a host magic has at hand while it is evaluated: the session's VM, its lease, its output. Imported when needed.

The magic runs in a thread; streams, sockets and requests belong to the main loop. Between the two is ``HostCall``: the
thread has the loop call functions, and the loop hands over what the guest sends to the magic.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from guest_agent.frames import FrameError, Kind, decode_json
from vm_kernel.errors import GuestProtocolError, VMDied, VMError, VMKernelError
from vm_kernel.guest import MESSAGE_COST

if TYPE_CHECKING:
    from vm_kernel.kernel.guestside import GuestSide
    from vm_kernel.kernel.tenancy import Tenancy
    from vm_kernel.pool.client import Lease, PoolConnection
    from vm_kernel.pool.protocol import VMFacts

T = TypeVar("T")

#: bytes from the guest that wait for the magic; beyond, the loop leaves them in the stream
MAX_WAITING = 8 * 1024 * 1024
#: seconds between two looks whether the magic has been interrupted
_LOOK_S = 0.1


class UsageError(VMKernelError):
    """A host magic was given arguments that it does not understand, or was asked for its help."""


class Interrupted(VMKernelError):
    """The user has interrupted the cell in which a host magic runs."""


class HostCall:
    """One evaluation of a host magic that needs more than the pool's status.

    ``show``, ``ask``, ``receive``, ``send``, ``pool`` and ``move`` are for the magic's thread; the rest is the loop's.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        tenancy: Tenancy,
        guest: GuestSide,
        publish: Callable[[str, dict[str, Any]], None],
        wake: Callable[[], None],
    ) -> None:
        self.name = name
        self.arguments = arguments
        self._tenancy = tenancy
        self._guest = guest
        self._publish = publish
        self._wake = wake
        self._wanted: deque[Callable[[], None]] = deque()
        self._inbox: queue.SimpleQueue[tuple[Kind, bytes] | None] = queue.SimpleQueue()
        #: bytes of messages that the loop has handed over, and that the magic has taken: each counts alone
        self._delivered = self._taken = 0
        self._shown = False
        self._interrupted = threading.Event()
        self._ended = False

    # ---- for the magic

    @property
    def vm(self) -> VMFacts | None:
        """Facts about this session's VM."""
        return self._tenancy.vm

    def show(self, data: dict[str, str]) -> None:
        """Show ``data`` (by MIME type) as the cell's output, in the place of what it showed before."""
        transient = {"display_id": f"{self.name}-{id(self):x}"}
        kind, self._shown = ("update_display_data" if self._shown else "display_data"), True
        self._on_loop(lambda: self._publish(kind, {"data": data, "metadata": {}, "transient": transient}))

    def check_interrupt(self) -> None:
        """Raises Interrupted if the user wants this to end. A magic that works for long calls it often."""
        if self._interrupted.is_set():
            raise Interrupted(f"%{self.name} was interrupted.")

    def send(self, kind: Kind, parts: list[bytes]) -> int:
        """Send a message of byte strings to the agent. Returns how many bytes now wait for the guest to take them."""
        return self._on_loop(lambda: self._stream_send(lambda stream: stream.send_parts(kind, parts)))

    def receive(self, timeout_s: float) -> tuple[Kind, bytes]:
        """The next message of the agent to this magic. Raises VMError after the timeout, VMDied, Interrupted."""
        return self._receive(timeout_s, time.monotonic() + timeout_s)

    def _receive(self, timeout_s: float, deadline: float) -> tuple[Kind, bytes]:
        while True:
            self.check_interrupt()
            try:
                message = self._inbox.get(timeout=min(_LOOK_S, max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= deadline:
                    raise VMError(f"The guest did not answer within {timeout_s:g} s.", "Run the cell again.") from None
                continue
            if message is None:
                raise VMDied("The virtual machine has ended.", "Its state is lost.")
            self._taken += len(message[1]) + MESSAGE_COST
            self._wake()
            return message

    def ask(self, kind: Kind, fields: dict[str, Any], answer: Kind, timeout_s: float) -> dict[str, Any]:
        """Send a JSON message to the agent and wait for its answer. Raises as receive(), and GuestProtocolError."""
        deadline = time.monotonic() + timeout_s
        self.tell(kind, fields)
        received, body = self._receive(timeout_s, deadline)
        while received is Kind.FILES and time.monotonic() < deadline:  # what is left of a transfer that was given up
            received, body = self._receive(timeout_s, deadline)
        try:
            if received is answer:
                return decode_json(body)
        except FrameError:
            pass
        raise GuestProtocolError(f"The guest sent {received.name} where {answer.name} was due.")

    def tell(self, kind: Kind, fields: dict[str, Any]) -> None:
        """Send a JSON message to the agent."""
        self._on_loop(lambda: self._stream_send(lambda stream: stream.send_json(kind, fields)))

    def note(self, event: str, fields: dict[str, Any]) -> None:
        """Tell the pool service what was done, see ``pool/notes.py``."""
        self._on_loop(lambda: self._tenancy.note(event, fields))

    def pool(self, function: Callable[[PoolConnection], T]) -> T:
        """Ask the pool service something over the lease. ``function`` runs in this thread and may block."""
        with self._tenancy.borrowed() as connection:
            return function(connection)

    def move(self, lease: Lease) -> None:
        """Go on in another VM that the pool has given this session; the one before is forgotten."""
        self._on_loop(lambda: self._guest.move(lease))

    # ---- for the loop

    def advance(self) -> None:
        """Do what the magic wants done."""
        while self._wanted:
            self._wanted.popleft()()

    def deliver(self, kind: Kind, body: bytes) -> None:
        """A message of the guest that is meant for the magic."""
        self._delivered += len(body) + MESSAGE_COST
        self._inbox.put((kind, body))

    @property
    def has_room(self) -> bool:
        """False while the magic lags behind the guest."""
        return self._delivered - self._taken < MAX_WAITING

    def interrupt(self) -> None:
        """The user wants it to end."""
        self._interrupted.set()

    def vm_ended(self) -> None:
        """Nothing will come from the guest any more, and the loop does nothing more for the magic."""
        self._ended = True
        self._inbox.put(None)

    def _stream_send(self, send: Callable[[Any], None]) -> int:
        stream = self._tenancy.stream
        if stream is None or stream.fileno() < 0:
            raise VMDied("The virtual machine has ended.", "Its state is lost.")
        send(stream)
        return stream.queued_bytes

    def _on_loop(self, function: Callable[[], T]) -> T:
        """Have the loop call ``function``; returns what it returns and raises what it raises, or VMDied."""
        done = threading.Event()
        outcome: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(function())
            except BaseException as error:
                errors.append(error)
            finally:
                done.set()

        self._wanted.append(run)
        self._wake()
        while not done.wait(_LOOK_S):
            if self._ended:
                raise VMDied("The virtual machine has ended.", "Its state is lost.")
        if errors:
            raise errors[0]
        return outcome[0]
