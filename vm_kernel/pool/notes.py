"""What the holder of a lease tells of its session: checked, because a kernel process may have been taken over.

A note is one line with no answer, see ``PoolConnection.note``. It changes figures and the audit log, nothing else.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from vm_kernel.errors import PoolRequestError

#: characters of code that are kept, if code is kept at all
MAX_CODE = 16 * 1024
#: notes of one lease: so many a second in the long run, and so many at once. What is beyond is counted and dropped
RATE_PER_S = 100.0
BURST = 1000.0

_MAX_COUNT = 1 << 53
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Note(NamedTuple):
    """A checked note: nothing in ``fields`` but what its event has, each of the right type and size."""

    event: str
    fields: dict[str, Any]


class Allowance:
    """A token bucket: how many notes a lease may still send now."""

    def __init__(self) -> None:
        self._left = BURST
        self._at = time.monotonic()

    def take(self) -> bool:
        """True if one more is allowed."""
        now = time.monotonic()
        self._left = min(BURST, self._left + RATE_PER_S * (now - self._at))
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def parse_note(request: dict[str, Any]) -> Note:
    """The note that came as ``{"op": "note", "event": …}``. Raises PoolRequestError if it is not one."""
    event = request.get("event")
    schema = _SCHEMAS.get(event) if isinstance(event, str) else None
    if schema is None:
        raise PoolRequestError("A note of no known event.", "See vm_kernel/pool/notes.py.")
    fields = {}
    for name, check in schema.items():
        value = request.get(name)
        if not check(value):
            raise PoolRequestError(
                f"A note {event!r} whose {name} is missing or wrong.", "See vm_kernel/pool/notes.py."
            )
        fields[name] = value
    code = request.get("code")
    if event == "execution" and isinstance(code, str):
        fields["code"] = code[:MAX_CODE]
    return Note(str(event), fields)


def _text(limit: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and len(value) <= limit


def _one_of(*words: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in words


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


def _milliseconds(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value < 1e12 and math.isfinite(value)


def _digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


_SCHEMAS: dict[str, dict[str, Callable[[object], bool]]] = {
    # a cell has ended; msg_id: of its execute_request
    "execution": {
        "msg_id": _text(512),
        "status": _one_of("ok", "error", "aborted", "timeout", "ended"),
        "ms": _milliseconds,
        "output_bytes": _count,
        "code_sha256": _digest,
        "code_bytes": _count,
        "new_output_bytes": _count,
    },
    # output of the session since the last note, from a cell that goes on
    "output": {"new_output_bytes": _count},
    # a file or a tree has been moved; action: in the VM's eyes
    "files": {
        "action": _one_of("put", "get"),
        "path": _text(4096),
        "files": _count,
        "bytes": _count,
        "status": _one_of("ok", "error"),
        "ms": _milliseconds,
    },
    # what a VM has asked the egress proxy for; "opened" is followed by "closed". unnoted: attempts since the last note
    # that were too many to be noted
    "egress": {
        "verdict": _one_of("refused", "failed", "opened", "closed"),
        "host": _text(255),
        "port": _count,
        "address": _text(64),
        "reason": _text(200),
        "sent_bytes": _count,
        "received_bytes": _count,
        "ms": _milliseconds,
        "unnoted": _count,
    },
}
