"""Runs code in a leased VM by speaking frames on its stream: what the kernel process does, without Jupyter."""

from __future__ import annotations

import json
import select
import time
import uuid
from typing import Any, NamedTuple

from guest_agent.frames import JUPYTER_KINDS, Kind, unpack_parts
from vm_kernel.guest.channel import FrameStream
from vm_kernel.pool.client import Lease


class Result(NamedTuple):
    """What one cell did."""

    status: str
    text: str
    content: dict[str, Any]


class GuestSession:
    """One client on one lease."""

    def __init__(self, lease: Lease, identity: bytes = b"test-client") -> None:
        self.stream = FrameStream(lease.stream)
        self._identity = identity

    def send(self, msg_type: str, content: dict[str, Any], kind: Kind = Kind.SHELL) -> str:
        """Send a request; returns its msg_id."""
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "session": "test",
            "username": "test",
            "date": "2026-01-01T00:00:00Z",
            "version": "5.4",
        }
        self.stream.send_parts(kind, [self._identity, *(json.dumps(p).encode() for p in (header, {}, {}, content))])
        return header["msg_id"]

    def execute(self, code: str, timeout_s: float = 60.0) -> Result:
        """Run a cell and wait for its reply and its idle."""
        msg_id = self.send("execute_request", {"code": code, "silent": False, "store_history": True})
        text, reply, idle = "", None, False
        deadline = time.monotonic() + timeout_s
        while reply is None or not idle:
            assert select.select([self.stream], [], [], max(0.0, deadline - time.monotonic()))[0], f"no reply: {code}"
            for kind, body in self.stream.receive():
                if kind not in JUPYTER_KINDS:
                    continue
                _, header, parent, _, content = (
                    json.loads(p) if n else p for n, p in enumerate(unpack_parts(body)[:5])
                )
                if parent.get("msg_id") != msg_id:
                    continue
                if header["msg_type"] == "stream":
                    text += content["text"]
                elif header["msg_type"] == "execute_reply":
                    reply = content
                elif header["msg_type"] == "status" and content["execution_state"] == "idle":
                    idle = True
        return Result(reply["status"], text, reply)

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the guest; its value must be JSON-able."""
        result = self.execute(f"import json as _json; print(_json.dumps({expression}))")
        assert result.status == "ok", result.content
        return json.loads(result.text)
