"""Everything that leaves for clients goes through here: it gets its header, its signature and its address.

All messages of one launch carry one session id, the guest's included: JupyterLab takes a change of it for a restart
and drops messages.
"""

from __future__ import annotations

import os
import time
from typing import Any

import zmq

from vm_kernel.guest.messages import DELIMITER, GuestMessage
from vm_kernel.kernel.iopub import Iopub
from vm_kernel.kernel.requests import Request, Requests
from vm_kernel.kernel.sockets import Sockets
from vm_kernel.kernel.wire import Signer, to_json

PROTOCOL_VERSION = "5.4"


class Outlet:
    """Sends messages of our own, and passes on those of the guest."""

    def __init__(self, sockets: Sockets, signer: Signer, requests: Requests) -> None:
        self._sockets = sockets
        self._signer = signer
        self._requests = requests
        self._session = os.urandom(16).hex()
        self._sent = 0
        #: parent of what was published last: what is left out is announced there
        self._last_parent = b"{}"
        #: whose status was published last
        self._last_status: Request | None = None
        self.iopub = Iopub(sockets.iopub)
        self.iopub.announce = self.announce

    def begin_anew(self) -> None:
        """Tell clients that the kernel behind us is another one now, and take a new session id.

        JupyterLab forgets comms and pending requests then, as after a restart by its server.
        """
        self.publish("status", {"execution_state": "restarting"}, None)
        self._session = os.urandom(16).hex()

    # ---- messages of our own

    def publish(self, msg_type: str, content: dict[str, Any], parent: Request | None) -> None:
        """A message of our own on iopub."""
        if msg_type == "status":
            self._last_status = parent
        self._publish(msg_type, _header_of(parent), b"{}", to_json(content))

    def busy(self, request: Request) -> None:
        """Say that work on a request begins. Once: later calls do nothing."""
        if not request.busy:
            request.busy = True
            self.publish("status", {"execution_state": "busy"}, request)

    def idle(self, request: Request) -> None:
        """Say that work on a request has ended. Once."""
        if not request.idle:
            request.idle = True
            self.publish("status", {"execution_state": "idle"}, request)
            self._requests.settle(request)

    def reply(self, request: Request, content: dict[str, Any]) -> None:
        """Answer a request. Once."""
        if not request.replied:
            self._reply(request, b"{}", to_json(content))

    def answer(self, request: Request, content: dict[str, Any]) -> None:
        """A whole answer: busy, the reply, idle."""
        self.busy(request)
        self.reply(request, content)
        self.idle(request)

    def foretell(self) -> None:
        """Say that the guest begins a cell when it is that cell's turn: emulated on a busy machine it takes its time.

        jupyter_console takes the 'idle' of the request before for that of its cell if no 'busy' comes within 50 ms, and
        then shows no output and no question of it until it has ended.
        """
        if (cell := self._requests.next_cell()) is not None:
            self.busy(cell)

    def welcome(self, topic: bytes) -> None:
        """Greet a new subscriber (JEP 65)."""
        content = {"subscription": topic.decode(errors="replace")}
        frames = self._frames("iopub_welcome", b"{}", b"{}", to_json(content))
        self.iopub.send([topic, *frames] if topic else frames)

    # ---- messages of the guest

    def relay_iopub(self, message: GuestMessage, parent: Request | None) -> None:
        """Pass on what the guest published, as caused by ``parent``; but not what ``foretell`` has said already."""
        if message.msg_type == "status":
            begins = message.content.get("execution_state") == "busy"
            if begins and parent is not None and parent.busy and self._last_status is parent:
                return
            self._last_status = parent
        _, _, metadata, content, *buffers = message.parts
        self._publish(message.msg_type, _header_of(parent), metadata, content, buffers, message.address)
        if parent is not None and message.msg_type == "status":
            if message.content.get("execution_state") == "idle":
                parent.idle = True
                self._requests.settle(parent)
                self.foretell()
            else:
                parent.busy = True

    def relay_reply(self, message: GuestMessage, request: Request) -> None:
        """Pass on the guest's reply to the client whose request it is."""
        _, _, metadata, content, *buffers = message.parts
        self._reply(request, metadata, content, buffers)

    def relay_input_request(self, message: GuestMessage, request: Request) -> None:
        """Pass on the guest's question to the client whose cell asks it."""
        _, _, metadata, content, *buffers = message.parts
        frames = self._frames("input_request", request.header_bytes, metadata, content, buffers)
        self._sockets.stdin.send_multipart([*request.identities, *frames])

    # ---- frames

    def _reply(self, request: Request, metadata: bytes, content: bytes, buffers: list[bytes] | None = None) -> None:
        request.replied = True
        frames = self._frames(request.reply_type, request.header_bytes, metadata, content, buffers)
        self._socket(request.channel).send_multipart([*request.identities, *frames])
        self._requests.settle(request)
        self.foretell()

    def _publish(
        self,
        msg_type: str,
        parent: bytes,
        metadata: bytes,
        content: bytes,
        buffers: list[bytes] | None = None,
        topic: bytes = b"",
    ) -> None:
        topic = topic or f"kernel.{self._session}.{msg_type}".encode()
        self._last_parent = parent
        self.iopub.send([topic, *self._frames(msg_type, parent, metadata, content, buffers)])

    def announce(self, text: str) -> None:
        """Tell all clients something about the session, beside the output that came last."""
        content = {"name": "stderr", "text": f"\nvm-kernel: {text}\n"}
        self._publish("stream", self._last_parent, b"{}", to_json(content))

    def _frames(
        self, msg_type: str, parent: bytes, metadata: bytes, content: bytes, buffers: list[bytes] | None = None
    ) -> list[bytes]:
        signed = [self._header(msg_type), parent, metadata, content]
        return [DELIMITER, self._signer.sign(signed), *signed, *(buffers or ())]

    def _header(self, msg_type: str) -> bytes:
        self._sent += 1
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return to_json(
            {
                "msg_id": f"{self._session}_{os.getpid()}_{self._sent}",
                "msg_type": msg_type,
                "username": "vm-kernel",
                "session": self._session,
                "date": f"{date}.{nanoseconds // 1000:06d}Z",
                "version": PROTOCOL_VERSION,
            }
        )

    def _socket(self, channel: str) -> zmq.Socket[bytes]:
        return self._sockets.control if channel == "control" else self._sockets.shell


def _header_of(request: Request | None) -> bytes:
    return request.header_bytes if request is not None else b"{}"
