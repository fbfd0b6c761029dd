"""The guest stream on an asyncio event loop: for the Python API. The kernel process has a poll loop of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from guest_agent.frames import Kind
from vm_kernel.errors import GuestProtocolError, VMDied, VMKernelError
from vm_kernel.guest.channel import FrameStream


class VsockProtocol:
    """Frames to and from one guest agent, over vsock or what stands in for it (virtio-serial's unix socket).

    ``on_message`` is called for each message, ``on_end`` once, when the guest has gone (VMDied) or broken the protocol
    (GuestProtocolError). Neither may block. Owns the socket that it is given. Made and used on a running event loop.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Kind, bytes], None],
        on_end: Callable[[VMKernelError], None],
    ) -> None:
        self._stream = FrameStream(sock)
        self._on_message = on_message
        self._on_end = on_end
        #: called when the guest has taken something: there may be room for more
        self.on_written: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._fd = self._stream.fileno()
        self._writing = False
        self._loop.add_reader(self._fd, self._readable)

    @property
    def queued_bytes(self) -> int:
        """Bytes that the guest has not taken yet."""
        return self._stream.queued_bytes

    def send_parts(self, kind: Kind, parts: list[bytes]) -> None:
        """Send one Jupyter message, now or as soon as the guest takes it."""
        self._stream.send_parts(kind, parts)
        self._watch()

    def send_json(self, kind: Kind, fields: dict[str, Any]) -> None:
        """Send one JSON message, now or as soon as the guest takes it."""
        self._stream.send_json(kind, fields)
        self._watch()

    def close(self) -> None:
        """Close the stream; the guest's VM ends. Nothing is called after that. Safe to call twice."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._fd = -1
        self._stream.close()

    def _readable(self) -> None:
        try:
            messages = self._stream.receive()
        except EOFError:
            self._end(VMDied("The virtual machine has ended unexpectedly.", "Its state is lost. Take a new one."))
            return
        except GuestProtocolError as error:
            self._end(error)
            return
        for kind, body in messages:
            if self._fd >= 0:
                self._on_message(kind, body)

    def _end(self, error: VMKernelError) -> None:
        self.close()
        self._on_end(error)

    def _watch(self) -> None:
        """Ask for the descriptor's writability exactly while something waits to be written."""
        wanted = self._fd >= 0 and self._stream.wants_write
        if wanted and not self._writing:
            self._loop.add_writer(self._fd, self._writable)
        elif self._writing and not wanted and self._fd >= 0:
            self._loop.remove_writer(self._fd)
        self._writing = wanted

    def _writable(self) -> None:
        self._stream.flush()
        self.on_written()
        self._watch()
