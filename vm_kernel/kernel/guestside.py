"""What the guest says: checked, addressed by our own records, and passed on; markers of host cells taken out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from guest_agent.frames import JUPYTER_KINDS, FrameError, Kind, decode_json, unpack_parts
from vm_kernel.errors import GuestProtocolError, VMDied
from vm_kernel.guest import MESSAGE_COST
from vm_kernel.guest.ends import python_ended
from vm_kernel.guest.ledger import Ledger
from vm_kernel.guest.messages import GuestMessage, WireError, parse_guest
from vm_kernel.kernel.answers import abort, refuse
from vm_kernel.kernel.evaluations import Evaluations
from vm_kernel.kernel.hostcells import HostCell, HostMagic, Markers
from vm_kernel.kernel.info import kernel_info
from vm_kernel.kernel.outlet import Outlet
from vm_kernel.kernel.refusals import Refusals
from vm_kernel.kernel.requests import Request, Requests
from vm_kernel.kernel.tenancy import Tenancy
from vm_kernel.kernel.wire import FROM_GUEST_IOPUB, Message

if TYPE_CHECKING:
    from vm_kernel.guest.channel import FrameStream
    from vm_kernel.kernel.gate import Gate
    from vm_kernel.pool.client import Lease

_CHANNEL_KINDS = {"shell": Kind.SHELL, "control": Kind.CONTROL, "stdin": Kind.STDIN}
#: seconds after which an interrupt is answered even if the guest has not confirmed it
INTERRUPT_REPLY_S = 1.0
#: stands for a client without one identity of its own: replies are addressed by their parent, not by this
_NO_IDENTITY = b"vm-kernel-client"
#: what the agent sends to a host magic that is being evaluated
FOR_HOST_CALLS = frozenset({Kind.FROZEN, Kind.FILES})
#: bytes of the guest's other messages that wait for the end of a host cell
MAX_HELD = 8 * 1024 * 1024
#: input() in cells: questions that may wait for their client, and bytes of one. ZeroMQ bounds neither
MAX_QUESTIONS = 100
MAX_QUESTION = 64 * 1024
#: bytes that wait for the guest, beyond which it is not told any more that a comm of its own is closed
MAX_CLOSES = 1 << 20


class PendingInterrupt(NamedTuple):
    """An interrupt that the guest has not confirmed. ``request`` is None for a SIGINT; ``due`` as time.monotonic()."""

    request: Request | None
    due: float


class GuestSide:
    """Between the guest stream and the clients, in both directions."""

    def __init__(self, outlet: Outlet, requests: Requests, tenancy: Tenancy, wake: Callable[[], None]) -> None:
        self._outlet = outlet
        self._requests = requests
        self._tenancy = tenancy
        self._received: deque[tuple[Kind, bytes]] = deque()
        self._markers = Markers()
        self._held_bytes = 0
        self.evaluations = Evaluations(outlet, requests, tenancy, self, wake)
        self._interrupts: dict[int, PendingInterrupt] = {}
        self._sequence = 0
        #: interrupts that the guest has not confirmed, whether or not their client has been answered
        self._unconfirmed: set[int] = set()
        self._questions = 0
        self._refusals = Refusals("guest")
        self._ledger = Ledger(tenancy.note)

    @cached_property
    def _gate(self) -> Gate:
        """Made, and imported, when the guest has something to say: a kernel's first answer does not wait for it."""
        from vm_kernel.kernel.gate import Gate

        return Gate(self._close_comm, lambda: kernel_info(self._tenancy.profile, self._gate.policy))

    # ---- to the guest

    def send(self, channel: str, identities: list[bytes], parts: list[bytes]) -> None:
        """Hand a message to the guest, in the name of a client."""
        assert self._tenancy.stream is not None
        named = len(identities) == 1 and identities[0][:1] != b"\0"
        identity = identities[0] if named else _NO_IDENTITY
        self._tenancy.stream.send_parts(_CHANNEL_KINDS[channel], [identity, *parts])

    def send_input(self, message: Message) -> None:
        """Hand the guest what a client has typed."""
        self._questions = 0
        self.send("stdin", message.identities, message.parts)

    def send_request(self, request: Request) -> None:
        """Hand a client's request to the guest."""
        if request.is_execute:
            vm = self._tenancy.vm
            self._questions = 0
            self._ledger.keep_code = vm is not None and vm.audit_code
            self._ledger.sent(request.msg_id, request.content.get("code"))
        elif request.msg_type == "comm_open":
            self._gate.client_opens(request.content)
        self.send(request.channel, request.identities, request.parts)

    def send_marker(self, request: Request, magic: HostMagic) -> None:
        """Hand the guest a marker in the place of a host cell."""
        parts, cell = self._markers.place(request, magic)
        if magic.exclusive:
            self.evaluations.exclusive = cell
        self.send(request.channel, request.identities, parts)

    def make_up(self, request: Request, count: int) -> None:
        """Tell a new guest how many cells have been counted without it.

        In the name of the client whose cell comes next: only what goes over one connection stays in order.
        """
        self.send(request.channel, request.identities, self._markers.make_up(count))

    def _close_comm(self, comm_id: str) -> None:
        """Tell the guest that nobody is at the other end of a comm that it has opened."""
        stream = self._tenancy.stream
        if stream is not None and stream.queued_bytes < MAX_CLOSES:
            self.send("shell", [], self._markers.close_comm(comm_id))

    def interrupt(self, request: Request | None) -> None:
        """Interrupt what runs in the guest; ``request`` is answered when that has been done."""
        assert self._tenancy.stream is not None
        self._sequence += 1
        self._questions = 0
        self._unconfirmed.add(self._sequence)
        self._interrupts[self._sequence] = PendingInterrupt(request, time.monotonic() + INTERRUPT_REPLY_S)
        self._tenancy.stream.send_json(Kind.INTERRUPT, {"seq": self._sequence})

    def confirm_late_interrupts(self) -> None:
        """Called every turn. A guest that is stuck, or busy sending, need not keep its user waiting."""
        now = time.monotonic()
        for sequence in [number for number, pending in self._interrupts.items() if pending.due <= now]:
            self._confirm(self._interrupts.pop(sequence))

    def next_event_in_s(self) -> float | None:
        """Seconds until confirm_late_interrupts() has something to do; None: never."""
        if not self._interrupts:
            return None
        return max(0.0, min(pending.due for pending in self._interrupts.values()) - time.monotonic())

    def forget(self) -> None:
        """The VM has ended or been given back: nothing that it has said or was asked counts any more."""
        for pending in self._interrupts.values():
            self._confirm(pending)
        self._ledger.vm_ended()
        self.__dict__.pop("_gate", None)  # no comm of before is open
        self._received.clear()
        self._held_bytes = 0
        self.evaluations.forget()
        self._interrupts.clear()
        self._unconfirmed.clear()
        self._markers = Markers()

    def move(self, lease: Lease) -> None:
        """Go on in another VM, which knows nothing of what the one before was asked. A host magic has seen to it."""
        for request in self._requests.open():
            if request.passed and (exclusive := self.evaluations.exclusive) and request is not exclusive.request:
                _end_without_answer(self._outlet, request)
        self._ledger.vm_ended()
        self._received.clear()
        self._held_bytes = 0
        self._unconfirmed.clear()
        self._markers = Markers()
        self._tenancy.replace(lease)
        assert self._tenancy.stream is not None
        self._tenancy.stream.send_json(Kind.THAW, {})

    def _confirm(self, pending: PendingInterrupt) -> None:
        if pending.request is not None:
            self._outlet.answer(pending.request, {"status": "ok"})

    # ---- from the guest

    @property
    def ready_for_more(self) -> bool:
        """False while a host cell is being answered, unless it talks to the guest."""
        return self.evaluations.listens or not (self._received or self.evaluations.running)

    def receive(self, stream: FrameStream) -> None:
        """Take what has arrived. Raises EOFError, GuestProtocolError."""
        for kind, body in stream.receive():
            if kind is Kind.PROXY:
                self._tenancy.from_proxy(body)
            elif kind not in FOR_HOST_CALLS:
                self._received.append((kind, body))
                self._held_bytes += len(body) + MESSAGE_COST
            elif not self.evaluations.deliver(kind, body):
                self._refusals.note("nobody waits for it", channel=kind.name.lower())

    def handle_received(self) -> None:
        """Deal with what has been received, as far as possible. Raises VMDied, GuestProtocolError.

        What the guest does while a host cell is being answered is shown after it, unless it is much.
        """
        while self._received and (not self.evaluations.running or self._held_bytes > MAX_HELD):
            self._held_bytes -= len(self._received[0][1]) + MESSAGE_COST
            self._handle(*self._received.popleft())

    def _handle(self, kind: Kind, body: bytes) -> None:
        try:
            if kind in JUPYTER_KINDS:
                parts = unpack_parts(body)
                del body  # it may be large, and it is in the parts
                self._jupyter_message(kind, parse_guest(parts))
            else:
                self._agent_message(kind, decode_json(body))
        except WireError as error:
            self._refusals.note(str(error), channel=kind.name.lower())
        except FrameError as error:
            raise GuestProtocolError(
                f"The guest broke the protocol: {error}. Its VM is not used any more.",
                "Restart the kernel to get a fresh VM.",
            ) from None

    def _agent_message(self, kind: Kind, fields: dict[str, Any]) -> None:
        if kind is Kind.KERNEL_DIED:
            vm = self._tenancy.vm
            raise python_ended(fields, vm.memory_mib if vm is not None else None)
        sequence = fields.get("seq")
        if kind is Kind.INTERRUPTED and type(sequence) is int and sequence in self._unconfirmed:
            self._unconfirmed.discard(sequence)
            pending = self._interrupts.pop(sequence, None)
            self.send("shell", [], self._markers.nudge())
            if pending is not None:
                self._confirm(pending)
        else:
            self._refusals.note("nobody waits for it", channel=kind.name.lower())

    def _jupyter_message(self, kind: Kind, message: GuestMessage) -> None:
        if self._tenancy.vm is not None:
            self._gate.policy = self._tenancy.vm.outputs
        cell = self._markers.find(message.parent_id)
        if cell is not None:
            self._of_marker(cell, kind, message)
        elif kind is Kind.IOPUB:
            self._published(message, self._requests.find(message.parent_id))
        else:
            self._answered(kind, message, self._requests.find(message.parent_id))

    def _published(self, message: GuestMessage, parent: Request | None) -> None:
        if message.msg_type not in FROM_GUEST_IOPUB:
            raise WireError(f"a {message.msg_type[:60]!r} on iopub")
        if message.msg_type == "status":
            state = message.content.get("execution_state")
            if state not in ("busy", "idle") or (parent is not None and parent.idle):
                raise WireError("a status that is out of place")
        self._ledger.published(message)
        shown = self._gate.published(message)
        if shown is not None:
            self._outlet.relay_iopub(shown, parent)

    def _answered(self, kind: Kind, message: GuestMessage, request: Request | None) -> None:
        if request is None or request.replied or not request.wants_reply:
            raise WireError(f"a {message.msg_type[:60]!r} to no open request")
        if kind is Kind.STDIN and message.msg_type == "input_request":
            self._check_question(message, request)
            self._outlet.relay_input_request(message, request)
        elif kind is _CHANNEL_KINDS[request.channel] and message.msg_type == request.reply_type:
            self._outlet.relay_reply(self._gate.replied(message), request)
            self._ledger.replied(message)
        else:
            raise WireError(f"a {message.msg_type[:60]!r} to a {request.msg_type}")

    def _check_question(self, message: GuestMessage, request: Request) -> None:
        self._questions += 1
        if not request.content.get("allow_stdin") or self._questions > MAX_QUESTIONS:
            raise WireError("a question that nobody can answer")
        if sum(map(len, message.parts)) > MAX_QUESTION:
            raise WireError(f"a question of more than {MAX_QUESTION} bytes")

    # ---- host cells

    def _of_marker(self, cell: HostCell, kind: Kind, message: GuestMessage) -> None:
        if kind in (Kind.SHELL, Kind.CONTROL):
            self._markers.note_reply(cell, message)
        elif message.msg_type == "status":
            cell.idle = cell.idle or message.content.get("execution_state") == "idle"
        elif kind is Kind.IOPUB and message.msg_type not in ("execute_input", "error"):
            # a thread of the guest still prints to the cell that ran last, and that is the marker for it
            self._published(message, cell.request)
        if cell.due:
            self.evaluations.due(cell)
        elif cell.request is None and cell.replied and cell.idle:
            self._markers.forget(message.parent_id)


def _end_without_answer(outlet: Outlet, request: Request) -> None:
    """The session went back to an earlier state, in which this request had not been made."""
    if request.is_execute:
        abort(outlet, request)
    elif request.wants_reply:
        refuse(outlet, request, VMDied("The session has gone back to a checkpoint meanwhile."))
