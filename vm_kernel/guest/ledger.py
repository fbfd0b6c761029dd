"""What one session executes and puts out, added up from the messages that pass: for the pool's audit log and metrics.

The kernel process and ``Sandbox`` keep one and have it told to the pool service. Nothing here blocks or raises; the
whole of it is some microseconds a cell. Standard library only, and little of it.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from vm_kernel.guest.messages import GuestMessage

#: executions without an end that are remembered; beyond, the oldest is forgotten
MAX_OPEN = 4096
#: output of a cell that goes on is told after so many seconds, if it is so many bytes
TELL_EVERY_S = 1.0
TELL_BYTES = 64 * 1024


class _Execution:
    __slots__ = ("begun", "code", "idle", "output_bytes", "sha256", "size", "status")

    def __init__(self, code: str, keep: bool) -> None:
        data = code.encode(errors="replace")
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.size = len(data)
        self.code = code if keep else None
        self.begun: float | None = None
        self.output_bytes = 0
        self.idle = False
        self.status = ""


class Ledger:
    """One session's. ``tell`` gets events and their fields for the pool service, False: it could not be told."""

    def __init__(self, tell: Callable[[str, dict[str, Any]], bool]) -> None:
        #: whether code itself is told (PoolConfig.audit_code); else only its digest and its length
        self.keep_code = False
        self._tell = tell
        self._open: OrderedDict[str, _Execution] = OrderedDict()
        self._untold_bytes = 0
        self._told_at = 0.0

    def sent(self, msg_id: str, code: object) -> None:
        """An execute_request goes to the guest."""
        if not isinstance(code, str):
            return
        self._open[msg_id] = _Execution(code, self.keep_code)
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)

    def published(self, message: GuestMessage) -> None:
        """The guest's message on iopub has been accepted."""
        execution = self._open.get(message.parent_id)
        if message.msg_type != "status":
            self._output(execution, sum(map(len, message.parts)))
        elif execution is None:
            pass
        elif message.content.get("execution_state") == "idle":
            execution.idle = True
            self._settle(message.parent_id, execution)
        elif execution.begun is None:
            execution.begun = time.monotonic()

    def replied(self, message: GuestMessage) -> None:
        """The guest's reply has been accepted."""
        execution = self._open.get(message.parent_id)
        if execution is not None:
            status = message.content.get("status")
            execution.status = execution.status or (status if status in ("ok", "error", "aborted") else "error")
            self._settle(message.parent_id, execution)

    def timed_out(self, msg_id: str) -> None:
        """Time is up for an execution: that is its status, whatever its reply says."""
        execution = self._open.get(msg_id)
        if execution is not None:
            execution.status = "timeout"

    def vm_ended(self) -> None:
        """The VM has ended or is given back: what runs ends with it, what waited for it has never begun."""
        for msg_id, execution in list(self._open.items()):
            if execution.begun is not None:
                execution.status = execution.status or "ended"
                self._end(msg_id, execution)
        self._open.clear()
        self._untold_bytes = 0

    def _output(self, execution: _Execution | None, size: int) -> None:
        self._untold_bytes += size
        if execution is not None:
            execution.output_bytes += size
        if self._untold_bytes >= TELL_BYTES and time.monotonic() - self._told_at >= TELL_EVERY_S:
            self._say("output", {})

    def _settle(self, msg_id: str, execution: _Execution) -> None:
        if execution.idle and execution.status:
            self._end(msg_id, execution)

    def _end(self, msg_id: str, execution: _Execution) -> None:
        del self._open[msg_id]
        seconds = 0.0 if execution.begun is None else time.monotonic() - execution.begun
        fields: dict[str, Any] = {
            "msg_id": msg_id,
            "status": execution.status,
            "ms": round(1000 * seconds, 1),
            "output_bytes": execution.output_bytes,
            "code_sha256": execution.sha256,
            "code_bytes": execution.size,
        }
        if execution.code is not None:
            fields["code"] = execution.code
        self._say("execution", fields)

    def _say(self, event: str, fields: dict[str, Any]) -> None:
        """Output that could not be told now is told the next time."""
        self._told_at = time.monotonic()
        if self._tell(event, fields | {"new_output_bytes": self._untold_bytes}):
            self._untold_bytes = 0
