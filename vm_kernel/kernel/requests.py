"""What clients have asked and what has become of it, with bounded memory.

Answers of the guest are addressed by this record and by nothing that the guest says: a reply goes to the client
whose request it names, once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from vm_kernel.kernel.wire import COMMS, Message

#: requests without an answer that are remembered; beyond, the oldest is forgotten
MAX_OPEN = 16384
#: finished requests that are remembered, because late output (of threads, of widgets) names them as its parent
MAX_FINISHED = 2048
#: what of a request's content is needed until it ends
_KEPT = ("silent", "store_history", "allow_stdin")


class Request:
    """One message of a client and how far its answer has come."""

    __slots__ = (
        "busy",
        "channel",
        "content",
        "header",
        "identities",
        "idle",
        "msg_id",
        "msg_type",
        "parts",
        "passed",
        "replied",
    )

    def __init__(self, channel: str, message: Message) -> None:
        self.channel = channel
        self.identities = message.identities
        self.header = message.header
        self.content: dict[str, Any] = message.content
        self.msg_id = message.msg_id
        self.msg_type = message.msg_type
        #: header, parent header, metadata, content, buffers; let go when they have been passed on
        self.parts = message.parts
        self.busy = self.idle = self.replied = False
        #: True from when the guest has it, or a marker that stands for it
        self.passed = False

    @property
    def header_bytes(self) -> bytes:
        """The header as the client sent it: the parent header of every answer."""
        return self.parts[0]

    @property
    def wants_reply(self) -> bool:
        """False for comm messages, which have none."""
        return self.msg_type not in COMMS

    @property
    def reply_type(self) -> str:
        """Message type of the answer."""
        return self.msg_type.removesuffix("_request") + "_reply"

    @property
    def is_execute(self) -> bool:
        """True if a cell is to be run."""
        return self.msg_type == "execute_request"

    @property
    def runs(self) -> bool:
        """True if it has begun and not ended."""
        return self.busy and not self.idle

    @property
    def silent(self) -> bool:
        """True if the cell is to run without being shown."""
        return bool(self.content.get("silent", False))

    @property
    def in_subshell(self) -> bool:
        """True if a subshell of the guest is to answer it, beside what the main shell does."""
        return self.header.get("subshell_id") is not None

    @property
    def stops_on_error(self) -> bool:
        """True if cells behind this one are not to run when it fails."""
        return bool(self.content.get("stop_on_error", True))

    @property
    def counted(self) -> bool:
        """True if the cell gets an execution count of its own."""
        return not self.silent and bool(self.content.get("store_history", True))

    def let_go(self) -> None:
        """Keep no more than what answers need: contents can be large."""
        del self.parts[1:]
        self.content = {name: self.content[name] for name in _KEPT if name in self.content}


class Requests:
    """All requests of all clients, by message id."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Request] = OrderedDict()
        self._finished: OrderedDict[str, Request] = OrderedDict()

    def add(self, request: Request) -> None:
        """Remember a request that has just arrived."""
        book, limit = (self._open, MAX_OPEN) if request.wants_reply else (self._finished, MAX_FINISHED)
        book[request.msg_id] = request
        if len(book) > limit:
            book.popitem(last=False)

    def find(self, msg_id: str) -> Request | None:
        """The request of that id, finished or not; None if it is unknown or forgotten."""
        return self._open.get(msg_id) or self._finished.get(msg_id)

    def settle(self, request: Request) -> None:
        """Note that a request may be finished: it is when its reply and its 'idle' have both been sent."""
        if request.replied and request.idle and self._open.get(request.msg_id) is request:
            del self._open[request.msg_id]
            self._finished[request.msg_id] = request
            if len(self._finished) > MAX_FINISHED:
                self._finished.popitem(last=False)

    def next_cell(self) -> Request | None:
        """The cell that the guest begins now, if it has one, nothing that came before, and nothing to do beside it."""
        first = next(iter(self._open.values()), None)
        if first is None or not first.is_execute or not first.passed or first.busy:
            return None
        return None if any(request.in_subshell for request in self._open.values()) else first

    def running_cell(self) -> Request | None:
        """The cell that has begun and not ended, the first if there are several (in subshells).

        If the guest says that none has begun: the first that it has, which it may be keeping to itself.
        """
        cells = [request for request in self._open.values() if request.is_execute and request.passed]
        return next((cell for cell in cells if cell.runs), cells[0] if cells else None)

    def open(self) -> list[Request]:
        """The requests that are not finished, in order of arrival."""
        return list(self._open.values())
