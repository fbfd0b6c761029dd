"""One request about files, between the two ends that serve it: a window, so that neither sends more than fits.

Everything is a FILES message of two parts, a JSON header and data. ``id`` in the header is the request's. Whoever
receives confirms what it has dealt with (``{"t": "ack", "bytes": n}``), and whoever sends has never more than WINDOW
bytes unconfirmed. So a slow disk at one end stops the sender at the other, and nothing in between has to store much.

Requests, host to guest, and what follows them, see tree_reader.py:

    {"op": "put", "path", "limits", "overwrite"}            host: messages, "done"; guest: "made"…, "done"
    {"op": "get", "path", "limits", "patterns", "hidden"}   guest: messages, "done"
    {"op": "read", "path", "limits"}                        guest: messages of one file, "done"
    {"op": "stat", "path"}                                  guest: "done" with its "kind"
    {"op": "list", "path", "limits"}                        guest: "item"…, "done"
    {"op": "remove", "path"}                                host: "path"…, "done"; guest: "done"
    {"op": "cancel"}                                        the request of that id is given up

Instead of its "done" the guest may send ``{"t": "error", "reason", "path"}``. Used by both ends; blocking.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from guest_agent.frames import FrameError, decode_json, unpack_parts

#: bytes of messages on their way in one direction
WINDOW = 1024 * 1024


class Cancelled(Exception):
    """The other end has given the request up."""


class Remote(Exception):
    """The other end says that it cannot go on."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.reason, self.path = str(fields.get("reason"))[:500], str(fields.get("path"))[:500]
        super().__init__(self.reason)


class Message(NamedTuple):
    """A FILES message. size: as it counts in the window."""

    fields: dict[str, Any]
    data: bytes
    size: int


class Pipe(Protocol):
    """How messages get from one end to the other. ``receive`` waits for the next one, or that which was put back."""

    def send(self, parts: list[bytes]) -> None: ...

    def receive(self) -> Message: ...

    def put_back(self, message: Message) -> None: ...


def parse(body: bytes) -> Message:
    """A message from the body of its frame. Raises FrameError."""
    parts = unpack_parts(body)
    if len(parts) != 2:
        raise FrameError(f"a FILES message of {len(parts)} parts")
    return Message(decode_json(parts[0]), parts[1], len(parts[0]) + len(parts[1]))


class Link:
    """One end of one request. Raises Remote, Cancelled, and FrameError if the other end breaks the rules."""

    def __init__(self, pipe: Pipe, request: int) -> None:
        self._pipe = pipe
        self._request = request
        self._unconfirmed = 0
        self._owed = 0

    def send(self, fields: dict[str, Any], data: bytes = b"") -> None:
        """Send a message when the other end has room for it."""
        header = self._header(fields)
        size = len(header) + len(data)
        while self._unconfirmed and self._unconfirmed + size > WINDOW:
            self._confirmed(self._next())
        self._unconfirmed += size
        self._pipe.send([header, data])

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next message; those before it have been dealt with."""
        if self._owed >= WINDOW // 4:
            self._pipe.send([self._header({"t": "ack", "bytes": self._owed}), b""])
            self._owed = 0
        while (message := self._next()).fields.get("t") == "ack":
            self._confirmed(message)
        self._owed += message.size
        return message.fields, message.data

    def until_done(self, take: Callable[[dict[str, Any], bytes], None]) -> dict[str, Any]:
        """Hand every message to ``take`` up to the other end's "done", whose fields are returned."""
        while True:
            fields, data = self.receive()
            if fields.get("t") == "done":
                return fields
            take(fields, data)

    def _next(self) -> Message:
        while (message := self._pipe.receive()).fields.get("id") != self._request:
            if "op" in message.fields:  # the other end has gone on, or this VM was restored from a checkpoint
                self._pipe.put_back(message)
                raise Cancelled
        if message.fields.get("op") == "cancel":
            raise Cancelled
        if message.fields.get("t") == "error":
            raise Remote(message.fields)
        return message

    def _confirmed(self, message: Message) -> None:
        size = message.fields.get("bytes")
        if message.fields.get("t") != "ack" or type(size) is not int or not 0 < size <= self._unconfirmed:
            raise FrameError("a FILES message that is out of place")
        self._unconfirmed -= size

    def _header(self, fields: dict[str, Any]) -> bytes:
        return json.dumps({"id": self._request, **fields}, separators=(",", ":")).encode()
