"""The host's end of file transfers over any socket, as the kernel process has it: a loop, and threads that wait."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from pathlib import Path

from guest_agent.frames import FrameError, Kind
from guest_agent.names import Limits, Patterns
from guest_agent.tree_writer import TreeWriter
from vm_kernel.errors import GuestProtocolError, VMDied
from vm_kernel.guest.channel import FrameStream
from vm_kernel.guest.file_channel import FileChannel, Progress
from vm_kernel.guest.files import FileRequest, Put, Transfer

LIMITS = Limits(max_bytes=200_000_000, max_entries=1000)


class FileHost:
    """A loop in a thread that owns the stream. ``with FileHost(sock) as host``."""

    def __init__(self, sock: socket.socket) -> None:
        self.stream = FrameStream(sock)
        self.channel = FileChannel(self._send)
        self._to_send: deque[list[bytes]] = deque()
        self._reading, self._writing = os.pipe()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._over = False

    def __enter__(self) -> FileHost:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        os.write(self._writing, b"x")
        self._thread.join()
        self.stream.close()
        os.close(self._reading)
        os.close(self._writing)

    def request(self, limits: Limits = LIMITS, progress: Progress | None = None) -> FileRequest:
        return FileRequest(self.channel, limits, progress)

    def put_tree(self, source: Path, target: str, hidden: bool = False, pattern: str = "**") -> Put:
        root = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return self.request().put_tree(root, target, Patterns([pattern], hidden))
        finally:
            os.close(root)

    def get_tree(
        self,
        source: str,
        target: Path,
        pattern: str = "**",
        hidden: bool = False,
        overwrite: bool = True,
        limits: Limits = LIMITS,
    ) -> Transfer:
        patterns = Patterns([pattern], hidden)
        anchor = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        try:
            writer = TreeWriter(anchor, target.parts[1:], limits, patterns, overwrite)
        finally:
            os.close(anchor)
        return self.request(limits).get_tree(source, writer, patterns)

    def _send(self, parts: list[bytes]) -> None:
        self._to_send.append(parts)
        os.write(self._writing, b"x")

    def _loop(self) -> None:
        try:
            while not self._over:
                writing = [self.stream] if self.stream.wants_write else []
                readable, _, _ = select.select([self.stream, self._reading], writing, [])
                if self._reading in readable:
                    os.read(self._reading, 4096)
                while self._to_send:
                    self.stream.send_parts(Kind.FILES, self._to_send.popleft())
                self.stream.flush()
                for kind, body in self.stream.receive():
                    if kind is Kind.FILES:
                        self.channel.feed(body)
        except EOFError:
            self.channel.fail(VMDied("The virtual machine has ended."))
        except (FrameError, GuestProtocolError) as error:
            self.channel.fail(GuestProtocolError(f"broke the protocol: {error}"))
