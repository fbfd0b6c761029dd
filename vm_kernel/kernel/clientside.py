"""What clients ask: the host's own answers, the queue of what waits for a VM, and the way to the guest."""

from __future__ import annotations

import time

from vm_kernel.errors import VMDied, VMKernelError
from vm_kernel.kernel.answers import abort, fail, refuse
from vm_kernel.kernel.escalation import DONE, OFFER, Escalation, Step
from vm_kernel.kernel.guestside import GuestSide
from vm_kernel.kernel.hostcells import HostCell, HostMagic, find_magic
from vm_kernel.kernel.info import kernel_info
from vm_kernel.kernel.outlet import Outlet
from vm_kernel.kernel.requests import Request, Requests
from vm_kernel.kernel.tenancy import Tenancy
from vm_kernel.kernel.waiting import WaitingRoom
from vm_kernel.kernel.wire import Message

#: seconds after the start in which the first cell waits for somebody to listen to its output: after a restart a
#: client's channels reconnect one by one, and output that is published before would be lost
LISTENERS_S = 1.0
#: seconds after the start at which a VM is asked for even if no client has asked anything. Not at once: the pool makes
#: the next VM when it gives one away, and that would slow down the answer to the first kernel_info_request
ACQUIRE_AFTER_S = 0.3


class ClientSide:
    """Decides what becomes of each client message."""

    def __init__(
        self, outlet: Outlet, requests: Requests, tenancy: Tenancy, guest: GuestSide, ports: dict[str, int]
    ) -> None:
        self._outlet = outlet
        self._requests = requests
        self._tenancy = tenancy
        self._guest = guest
        self._ports = ports
        self._waiting = WaitingRoom(outlet)
        guest.evaluations.on_failure = self._abort_waiting_cells
        self._escalation = Escalation()
        started = time.monotonic()
        self._listeners_by = started + LISTENERS_S
        #: when to ask for a VM; None: that has been done
        self._acquire_at: float | None = started + ACQUIRE_AFTER_S
        self.has_listeners = False
        #: set when the session is to end
        self.exit_status: int | None = None
        #: cells counted before there was a VM to count them
        self._count = 0
        self._no_vm: VMKernelError | None = None

    # ---- called by the loop

    def handle(self, channel: str, message: Message) -> None:
        """A checked message of a client."""
        if channel == "stdin":
            if self._tenancy.stream is not None:
                self._guest.send_input(message)
            return
        request = Request(channel, message)
        if self._acquire_at is not None:
            self._acquire_at = 0.0
        if request.msg_type == "shutdown_request":
            self._shutdown(request)
        elif request.msg_type == "interrupt_request":
            self.interrupt(request)
        elif request.msg_type == "connect_request":
            self._outlet.answer(request, {"status": "ok", **self._ports})
        else:
            self._admit(request)

    def _admit(self, request: Request) -> None:
        """A request that is, or may be, the guest's to answer.

        Only these are entered in the book: a kernel manager's interrupt_request can have the same message id as a cell
        of its client (both count from 0 in jupyter_client's clones of one session).
        """
        self._requests.add(request)
        if self._open:
            self._pass_on(request)
        elif request.msg_type == "kernel_info_request":
            self._outlet.answer(request, kernel_info(self._tenancy.profile))
        else:
            self._without_vm(request)

    def look_for_vm(self) -> None:
        """The attempt to get a VM may have ended."""
        try:
            if self._tenancy.collect():
                self._no_vm = None
        except VMKernelError as error:
            self._no_vm = error

    def advance(self) -> None:
        """Called every turn. Let in those who wait, if the way is free; else tell them why it is not, or refuse."""
        self._guest.confirm_late_interrupts()
        if self._acquire_at is not None and time.monotonic() >= self._acquire_at:
            self._acquire_at = None
            self._tenancy.acquire()
        if not self._waiting:
            return
        if self._may_run:
            self._let_in()
        elif self._tenancy.acquiring:
            self._waiting.tell(self._tenancy.progress)
        elif self._no_vm is not None and self._heard:
            for request in self._waiting.leave():
                self._refuse(request, self._no_vm)

    def _let_in(self) -> None:
        """Pass on those who wait, up to a host cell that nothing may overtake."""
        while self._guest.evaluations.exclusive is None and (request := self._waiting.first()) is not None:
            self._pass_on(request)

    def _abort_waiting_cells(self) -> None:
        """An exclusive host cell has failed or is interrupted: what was queued behind it does not run."""
        for request in self._waiting.take_cells():
            abort(self._outlet, request)

    def next_event_in_s(self) -> float | None:
        """Seconds until advance() has something to do even if nothing happens; None: never."""
        moments = (self._guest.next_event_in_s(), self._next_event_of_those_who_wait_in_s())
        return min((moment for moment in moments if moment is not None), default=None)

    def _next_event_of_those_who_wait_in_s(self) -> float | None:
        if self._acquire_at is not None:
            return max(0.0, self._acquire_at - time.monotonic())
        if not self._waiting or self._guest.evaluations.exclusive is not None:
            return None
        if self._tenancy.acquiring:
            return self._waiting.notice_in_s(self._tenancy.progress)
        return max(0.0, self._listeners_by - time.monotonic())

    def interrupt(self, request: Request | None) -> None:
        """Interrupt the running cell, and cancel cells that wait for a VM. ``request`` is None for a SIGINT."""
        if request is not None:
            self._outlet.busy(request)
        if self._guest.evaluations.exclusive is None:
            self._cancel_waiting()
        else:
            self._abort_waiting_cells()
        if self._tenancy.stream is None or self._guest.evaluations.interrupt():
            if request is not None:
                self._outlet.answer(request, {"status": "ok"})
            return
        cell = self._requests.running_cell()
        step = self._escalation.step(cell, time.monotonic())
        if cell is not None and step is Step.RESTART:
            self._restart_guest(cell)
            if request is not None:
                self._outlet.answer(request, {"status": "ok"})
            return
        if cell is not None and step is Step.OFFER:
            self._outlet.publish("stream", {"name": "stderr", "text": OFFER}, cell)
        self._guest.interrupt(request)

    def _restart_guest(self, cell: Request) -> None:
        """Take a fresh VM in the place of one whose cell does not stop. This process and its clients stay."""
        self._outlet.publish("stream", {"name": "stderr", "text": DONE}, cell)
        for request in self._requests.open():
            if request is cell:
                fail(self._outlet, request, "KernelRestarted", "The cell did not stop when it was interrupted.")
            elif request.is_execute:
                abort(self._outlet, request)
            else:
                refuse(self._outlet, request, VMDied("Python was restarted in a fresh virtual machine meanwhile."))
        self._guest.forget()
        self._outlet.begin_anew()
        self._count = 0
        self._tenancy.renew()

    # ---- with a VM

    @property
    def _heard(self) -> bool:
        """True if what is published is likely to be heard."""
        return self.has_listeners or time.monotonic() >= self._listeners_by

    @property
    def _may_run(self) -> bool:
        return self._tenancy.stream is not None and self._heard

    @property
    def _open(self) -> bool:
        """True if a message can go straight to the guest without overtaking another."""
        return self._may_run and not self._waiting and self._guest.evaluations.exclusive is None

    def _pass_on(self, request: Request) -> None:
        if self._count and request.counted:
            self._guest.make_up(request, self._count)
            self._count = 0
        magic = _magic_of(request)
        if magic is not None:
            request.passed = True
            self._guest.send_marker(request, magic)
            return
        request.passed = True
        self._guest.send_request(request)
        request.let_go()
        self._outlet.foretell()

    def _shutdown(self, request: Request) -> None:
        """Reply and end. The VM is not waited for: the pool destroys it when the lease's connection closes."""
        content = {"status": "ok", "restart": bool(request.content.get("restart", False))}
        self._outlet.busy(request)
        self._outlet.reply(request, content)
        self._outlet.publish("shutdown_reply", content, request)
        self._outlet.idle(request)
        self.exit_status = 0

    # ---- without a VM

    def _without_vm(self, request: Request) -> None:
        magic = _magic_of(request)
        plain = magic is not None and not magic.exclusive
        if magic and plain and self._tenancy.stream is None and self._heard and not self._waiting.has_cells:
            self._evaluate_now(request, magic)
            return
        self._waiting.admit(request)
        if request.is_execute and not plain:
            self._no_vm = None
            self._tenancy.acquire()

    def _refuse(self, request: Request, error: VMKernelError) -> None:
        """No VM is to be had."""
        magic = _magic_of(request)
        if magic is not None and not magic.exclusive:
            self._evaluate_now(request, magic)
        elif request.is_execute:
            self._count += request.counted
            refuse(self._outlet, request, error, self._count)
        elif request.wants_reply:
            refuse(self._outlet, request, error)

    def _evaluate_now(self, request: Request, magic: HostMagic) -> None:
        self._count += request.counted
        cell = HostCell(request, magic)
        cell.count = self._count
        self._guest.evaluations.due(cell)

    def _cancel_waiting(self) -> None:
        """The first cell ends as if it had run and been interrupted, the others as if they had been behind it."""
        for place, request in enumerate(self._waiting.take_cells()):
            if place:
                abort(self._outlet, request)
                continue
            self._count += request.counted
            evalue = "The cell was interrupted while it waited for a virtual machine."
            fail(self._outlet, request, "KeyboardInterrupt", evalue, self._count)


def _magic_of(request: Request) -> HostMagic | None:
    return find_magic(request.content.get("code")) if request.is_execute else None
