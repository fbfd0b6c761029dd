"""A guest on a socketpair, in a process of its own: answers as a kernel does until a cell names an attack.

``python -m tests.hostile_guest.agent FD``. It has no ipykernel, starts at once, and prints the text of each cell.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections import deque
from typing import Any

from guest_agent.frames import Decoder, Kind, decode_json, unpack_parts
from tests.hostile_guest import lies
from tests.hostile_guest.attacks import ENDLESS, FATAL, IGNORED, Attacker
from vm_kernel.kernel.info import BUILT_IN

_ALL = frozenset(Kind)


class Guest:
    """One guest. ``manner``: what a cell ``manner:NAME`` has set, for what the host asks later."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder(_ALL)
        self._count = 0
        self._manner = ""
        #: what the host has said while we were writing
        self._unread: deque[bytes] = deque()
        self._attacker = Attacker(self._write, {})

    def serve(self) -> None:
        """Until the host has gone."""
        try:
            while data := self._unread.popleft() if self._unread else self._sock.recv(1 << 18):
                for kind, body in self._decoder.feed(data):
                    self._take(kind, body)
        except OSError:
            pass

    def _take(self, kind: Kind, body: bytes) -> None:
        if kind in (Kind.SHELL, Kind.CONTROL):
            identity, header, _, _, content, *_ = unpack_parts(body)
            self._request(kind, identity, json.loads(header), json.loads(content))
        elif kind is Kind.INTERRUPT and self._manner != "deaf":
            self._attacker.json(Kind.INTERRUPTED, {"seq": decode_json(body)["seq"]})
        elif kind is Kind.FREEZE:
            lies.FROZEN.get(self._manner, lambda attacker: attacker.json(Kind.FROZEN, {}))(self._attacker)
        elif kind is Kind.FILES:
            fields = json.loads(unpack_parts(body)[0])
            if fields.get("op") not in (None, "cancel") and self._manner in lies.FILES:
                lies.FILES[self._manner](self._attacker, fields)

    def _request(self, kind: Kind, identity: bytes, header: dict[str, Any], content: dict[str, Any]) -> None:
        self._attacker = attacker = Attacker(self._write, header)
        msg_type, code = header["msg_type"], str(content.get("code", ""))
        if msg_type.startswith("comm_") and msg_type != "comm_info_request":
            return
        if self._manner == "mute" or (self._manner == "unmarked" and header["msg_id"].startswith("host-")):
            return
        if code.startswith("manner:"):
            self._manner = code.partition(":")[2]
        attacker.say("status", {"execution_state": "busy"})
        reply: dict[str, Any] = {"status": "ok"}
        if msg_type == "kernel_info_request":
            reply |= BUILT_IN
        if msg_type == "execute_request":
            self._count += 1
            reply |= {"execution_count": self._count, "user_expressions": {}, "payload": []}
            name = code.removeprefix("attack:")
            if attack := (IGNORED | FATAL | ENDLESS).get(name):
                attack.run(attacker)
            attacker.say("stream", {"name": "stdout", "text": code})
        attacker.say(msg_type.replace("_request", "_reply"), reply, kind=kind, address=identity)
        attacker.say("status", {"execution_state": "idle"})

    def _write(self, data: bytes) -> None:
        """All of it. What the host says meanwhile is read later, unless it is much: then nobody reads it at all."""
        view = memoryview(data)
        while view:
            reading = [self._sock] if len(self._unread) < 64 else []
            readable, writable, _ = select.select(reading, [self._sock], [])
            if readable:
                self._unread.append(self._sock.recv(1 << 18))
                if not self._unread[-1]:
                    raise ConnectionResetError
            if writable:
                view = view[self._sock.send(view[: 1 << 18], socket.MSG_DONTWAIT) :]


if __name__ == "__main__":
    Guest(socket.socket(fileno=int(sys.argv[1]))).serve()
