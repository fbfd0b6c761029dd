"""Cells that the host answers itself: which they are, and how they keep their place among the guest's cells.

A host cell never goes to the guest. In its place goes a *marker*, a silent request that moves the guest's execution
count on by one. When the marker has been answered, it is the host cell's turn, and its number is the marker's; when
it comes back as aborted (an earlier cell had failed), so is the host cell. Clients never see the marker.

What the magics say is in ``magics``, which is imported only when one of them is used.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, NamedTuple

from vm_kernel.guest.messages import MAX_COUNT, GuestMessage
from vm_kernel.kernel.requests import Request
from vm_kernel.kernel.wire import to_json

HOST_MAGICS = frozenset({"pool_status", "vm_info"})
#: host magics that need the guest to stand still, or change what later cells find: nothing runs beside them
EXCLUSIVE = frozenset({"checkpoint", "checkpoints", "rollback", "vm_put", "vm_get", "vm_run_input", "vm_run_collect"})
#: markers that are remembered after their turn: threads of the guest may still print with one as their parent
MAX_MARKERS = 256

# No name of the user's is touched. The history gets an empty entry, so that In[n] stays the n-th cell.
_MOVE_ON = (
    "(lambda ip, n: (ip.history_manager.input_hist_parsed.extend([''] * n), "
    "ip.history_manager.input_hist_raw.extend([''] * n), "
    "setattr(ip, 'execution_count', ip.execution_count + n)))(__import__('IPython').get_ipython(), {count})"
)
_OWN_HEADER = {"session": "host", "username": "vm-kernel", "date": "2020-01-01T00:00:00Z", "version": "5.4"}
_FAIL = "\nraise RuntimeError('a host cell failed')"


class HostMagic(NamedTuple):
    """A host magic as a cell has it."""

    name: str
    arguments: str
    #: True if more follows in the cell, which would have to run elsewhere
    trailing: bool

    @property
    def exclusive(self) -> bool:
        """True if it has the session to itself while it is evaluated."""
        return self.name in EXCLUSIVE


def find_magic(code: object) -> HostMagic | None:
    """The host magic that the cell starts with, None if the cell is the guest's."""
    if not isinstance(code, str):
        return None
    first, _, rest = code.lstrip().partition("\n")
    name, _, arguments = first.partition(" ") if " " in first else first.partition("\t")
    name = name.strip()
    if not name.startswith("%") or name[1:] not in HOST_MAGICS | EXCLUSIVE:
        return None
    return HostMagic(name[1:], arguments.strip(), bool(rest.strip()))


class HostCell:
    """One host cell. ``request`` is None for a marker that only makes up for cells counted before there was a VM."""

    __slots__ = ("aborted", "count", "idle", "magic", "replied", "request", "started")

    def __init__(self, request: Request | None, magic: HostMagic | None) -> None:
        self.request = request
        self.magic = magic
        self.count = 0
        self.aborted = self.replied = self.idle = self.started = False

    @property
    def due(self) -> bool:
        """True when everything before the cell is through, output included, and the cell has not begun."""
        return self.replied and self.idle and not self.started and self.request is not None


class Markers:
    """The markers that are on their way, by their message id."""

    def __init__(self) -> None:
        self._cells: OrderedDict[str, HostCell] = OrderedDict()

    def place(self, request: Request, magic: HostMagic) -> tuple[list[bytes], HostCell]:
        """The marker to send in the place of a host cell: header, parent header, metadata, content. And that cell."""
        cell = HostCell(request, magic)
        code = _MOVE_ON.format(count=int(request.counted))
        # Only an error of a cell that is not silent makes ipykernel abort the cells behind it.
        fails = magic.trailing and not request.silent
        content = {"stop_on_error": request.content.get("stop_on_error", True), "silent": not fails}
        return self._marker(cell, request.header, code + (_FAIL if fails else ""), content), cell

    def make_up(self, count: int) -> list[bytes]:
        """A marker that stands for ``count`` cells which were counted while there was no VM."""
        return self._marker(HostCell(None, None), _OWN_HEADER, _MOVE_ON.format(count=count), {"silent": True})

    def nudge(self) -> list[bytes]:
        """A marker that does nothing but arrive.

        ipykernel notes an interrupt of a cell that awaits something, and acts on it when its event loop wakes up:
        left alone, when what the cell awaits is there.
        """
        return self._message(HostCell(None, None), _OWN_HEADER, "comm_info_request", {})

    def close_comm(self, comm_id: str) -> list[bytes]:
        """A comm_close in the name of a front end that does not know what the guest has opened."""
        cell = HostCell(None, None)
        cell.replied = True  # comm messages have no reply
        return self._message(cell, _OWN_HEADER, "comm_close", {"comm_id": comm_id, "data": {}})

    def find(self, msg_id: str) -> HostCell | None:
        """The host cell that stands behind a message id."""
        return self._cells.get(msg_id)

    def forget(self, msg_id: str) -> None:
        """Make room: nothing more is expected of that marker."""
        self._cells.pop(msg_id, None)

    def note_reply(self, cell: HostCell, message: GuestMessage) -> None:
        """The guest has answered the marker."""
        cell.replied = True
        cell.aborted = message.content.get("status") == "aborted"
        count = message.content.get("execution_count")
        cell.count = count if type(count) is int and 0 <= count <= MAX_COUNT else 0

    def _marker(self, cell: HostCell, header: dict[str, Any], code: str, content: dict[str, Any]) -> list[bytes]:
        content = content | {"code": code, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        return self._message(cell, header, "execute_request", content)

    def _message(self, cell: HostCell, header: dict[str, Any], msg_type: str, content: dict[str, Any]) -> list[bytes]:
        msg_id = f"host-{os.urandom(16).hex()}"
        self._cells[msg_id] = cell
        if len(self._cells) > MAX_MARKERS:
            self._cells.popitem(last=False)
        header = header | {"msg_id": msg_id, "msg_type": msg_type}
        return [to_json(header), b"{}", b"{}", to_json(content)]
