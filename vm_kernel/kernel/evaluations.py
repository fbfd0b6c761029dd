"""Host cells whose turn has come: evaluated in a thread each, shown, and ended.

Some of them need the guest to stand still, or change what later cells find there (``HostMagic.exclusive``): nothing
may run beside them. They begin when every cell before them has ended, and what comes after them waits on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guest_agent.frames import Kind
from vm_kernel.kernel.answers import abort, begin_cell, end_cell, fail, show_output
from vm_kernel.kernel.background import Background
from vm_kernel.kernel.hostcells import HostCell
from vm_kernel.kernel.outlet import Outlet
from vm_kernel.kernel.requests import Requests
from vm_kernel.kernel.tenancy import Tenancy

if TYPE_CHECKING:
    from vm_kernel.kernel.guestside import GuestSide
    from vm_kernel.kernel.hostcall import HostCall


#: seconds that a magic whose VM has ended has for tidying up, before the kernel process may end
TIDY_S = 2.0


class _Evaluation:
    """One that is under way. ``call`` is None for a magic that needs neither guest nor lease."""

    __slots__ = ("call", "cell", "work")

    def __init__(self, cell: HostCell, work: Background[dict[str, str]], call: HostCall | None) -> None:
        self.cell = cell
        self.work = work
        self.call = call


class Evaluations:
    """All host cells of a session. Everything here is called by the main loop."""

    def __init__(
        self, outlet: Outlet, requests: Requests, tenancy: Tenancy, guest: GuestSide, wake: Callable[[], None]
    ) -> None:
        self._outlet = outlet
        self._requests = requests
        self._tenancy = tenancy
        self._guest = guest
        self._wake = wake
        self._running: list[_Evaluation] = []
        #: the exclusive cell that is on its way or being evaluated; while there is one, clients' requests wait
        self.exclusive: HostCell | None = None
        #: called when an exclusive cell has failed: cells behind it are not to run
        self.on_failure: Callable[[], None] = lambda: None

    @property
    def running(self) -> bool:
        """True while a host cell is being answered."""
        return bool(self._running)

    @property
    def listens(self) -> bool:
        """True if the cell that is being answered talks to the guest, and keeps up with it."""
        return bool(self._running) and (call := self._running[0].call) is not None and call.has_room

    def due(self, cell: HostCell) -> None:
        """Everything before a host cell is through, as far as its own client goes: answer it, now or when it may."""
        if cell is not self.exclusive or cell.aborted or self._quiet(cell):
            self._begin(cell)

    def advance(self) -> None:
        """Serve those that are under way, end those that are done, begin one that had to wait.

        Called when a thread has news, and when the guest has spoken.
        """
        for evaluation in self._running:
            if evaluation.call is not None:
                evaluation.call.advance()
        while self._running and self._running[0].work.done:
            self._finish(self._running.pop(0))
        cell = self.exclusive
        if cell is not None and cell.due and self._quiet(cell):
            self._begin(cell)

    def deliver(self, kind: Kind, body: bytes) -> bool:
        """A message of the guest to the magic that is being evaluated. False if nobody waits for one."""
        call = self._running[0].call if self._running else None
        if call is None:
            return False
        call.deliver(kind, body)
        return True

    def interrupt(self) -> bool:
        """Interrupt the magic that is being evaluated. False if there is none that could be."""
        call = self._running[0].call if self._running else None
        if call is not None:
            call.interrupt()
        return call is not None

    def forget(self) -> None:
        """The VM has ended or been given back. Magics that worked on it get a moment to tidy up on the host."""
        for evaluation in self._running:
            if evaluation.call is not None:
                evaluation.call.vm_ended()
                evaluation.work.wait(TIDY_S)
        self._running.clear()
        self.exclusive = None

    def _quiet(self, cell: HostCell) -> bool:
        """True if no other cell or request is with the guest's main shell."""
        return not any(
            request.passed and request is not cell.request and request.channel == "shell" and not request.in_subshell
            for request in self._requests.open()
        )

    def _begin(self, cell: HostCell) -> None:
        request, magic = cell.request, cell.magic
        assert request is not None
        assert magic is not None
        cell.started = True
        if cell.aborted:
            abort(self._outlet, request)
            self._leave(cell)
        elif magic.trailing:
            evalue = (
                f"%{magic.name} is evaluated on the host; the rest of its cell would have to run in the VM.\n"
                f"Put %{magic.name} into a cell of its own."
            )
            fail(self._outlet, request, "UsageError", evalue, cell.count)
            self._leave(cell, failed=True)
        elif magic.exclusive:
            begin_cell(self._outlet, request, cell.count)
            call = self._call(cell)
            self._running.append(_Evaluation(cell, Background(lambda: _evaluate_call(call), self._wake), call))
        else:
            vm = self._tenancy.vm
            work = Background(lambda: _evaluate(magic.name, magic.arguments, vm), self._wake)
            self._running.append(_Evaluation(cell, work, None))

    def _call(self, cell: HostCell) -> HostCall:
        from vm_kernel.kernel.hostcall import HostCall

        request, magic = cell.request, cell.magic
        assert magic is not None

        def publish(msg_type: str, content: dict[str, Any]) -> None:
            self._outlet.publish(msg_type, content, request)

        return HostCall(magic.name, magic.arguments, self._tenancy, self._guest, publish, self._wake)

    def _finish(self, evaluation: _Evaluation) -> None:
        cell, request, begun = evaluation.cell, evaluation.cell.request, evaluation.call is not None
        assert request is not None
        try:
            data = evaluation.work.result()
        except Exception as error:
            name = "KeyboardInterrupt" if type(error).__name__ == "Interrupted" else type(error).__name__
            fail(self._outlet, request, name, str(error), cell.count, begun)
            self._leave(cell, failed=True)
            return
        if begun:
            end_cell(self._outlet, request, cell.count)
        else:
            show_output(self._outlet, request, data, cell.count)
        self._leave(cell)

    def _leave(self, cell: HostCell, failed: bool = False) -> None:
        if cell is self.exclusive:
            self.exclusive = None
            if failed and cell.request is not None and cell.request.stops_on_error:
                self.on_failure()


def _evaluate(name: str, arguments: str, vm: Any) -> dict[str, str]:
    from vm_kernel.kernel.magics import evaluate

    return evaluate(name, arguments, vm)


def _evaluate_call(call: HostCall) -> dict[str, str]:
    from vm_kernel.kernel.callmagics import evaluate

    return evaluate(call)
