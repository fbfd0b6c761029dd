"""The agent's side of file transfers: passes FILES messages between the host and a worker process, and no more.

The agent is process 1 and root; files are served by a worker with the rights of the user (``files_worker.py``), forked
when it is needed first. How much is on its way between the two is bounded by the window of file_link.py, which a host
keeps to; a worker that does not take its messages is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable

import zmq

from guest_agent import files_worker
from guest_agent.file_link import WINDOW
from guest_agent.frames import Decoder, FrameError, Kind, encode_parts, unpack_parts
from guest_agent.outgoing import Outgoing

#: bytes that wait for the worker: some requests that were given up, each with a window of its own
_MAX_WAITING = 8 * WINDOW
_LOST = "the process in the virtual machine that serves files has ended; the next request starts another"


class Files:
    """The worker, as the agent's loop sees it. ``send`` takes the parts of a message for the host."""

    def __init__(self, poller: zmq.Poller, as_user: bool, send: Callable[[list[bytes]], None]) -> None:
        self._poller = poller
        self._as_user = as_user
        self._send = send
        self._sock: socket.socket | None = None
        self._pid = 0
        self._pidfd = -1
        self._outgoing = Outgoing()
        self._decoder = Decoder(frozenset({Kind.FILES}))
        #: header of the last message: tells which request a lost worker was busy with
        self._last = b"{}"

    @property
    def fd(self) -> int:
        """The worker's socket in the poller; -1 without a worker."""
        return self._sock.fileno() if self._sock is not None else -1

    def from_host(self, parts: list[bytes]) -> None:
        """A message of the host; one without data, of one part, says that the worker hangs. Raises FrameError."""
        if len(parts) not in (1, 2):
            raise FrameError(f"a FILES message of {len(parts)} parts")
        self._last = parts[0]
        if len(parts) == 1 or self._outgoing.bytes > _MAX_WAITING:
            self._lose()
            return
        if self._sock is None:
            self._start()
        self._outgoing.add(encode_parts(Kind.FILES, parts), False)
        self._write()

    def watch(self, room: bool) -> None:
        """Before each poll. ``room``: the host can be sent more."""
        if self._sock is not None:
            events = (zmq.POLLIN if room else 0) | (zmq.POLLOUT if self._outgoing.bytes else 0)
            self._poller.register(self._sock.fileno(), events)

    def ready(self, events: int) -> None:
        """After a poll. Passes on what there is, a bounded amount."""
        if events & zmq.POLLOUT:
            self._write()
        if events & ~zmq.POLLOUT and self._sock is not None:
            self._read()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            files_worker.run(theirs, self._as_user)
        theirs.close()
        ours.setblocking(False)
        self._sock, self._pid, self._pidfd = ours, pid, os.pidfd_open(pid)

    def _read(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        try:
            for _, body in self._decoder.feed(data):
                self._send(unpack_parts(body))
        except FrameError:  # the user may do to the worker what they like
            self._lose()

    def _write(self) -> None:
        # an error is noticed by _read(), when the worker's last words have been read
        with contextlib.suppress(OSError):
            self._outgoing.write(self.fd)

    def _lose(self) -> None:
        """The worker has ended, or is to: tell the host, and forget it."""
        if self._sock is not None:
            self._poller.register(self._sock.fileno(), 0)
            self._sock.close()
            self._sock = None
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            if not self._as_user:  # process 1 collects every child
                os.waitpid(self._pid, 0)
        self._outgoing.clear()
        self._decoder = Decoder(frozenset({Kind.FILES}))
        request = None
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            request = json.loads(self._last).get("id")
        self._send([json.dumps({"id": request, "t": "error", "reason": _LOST, "path": ""}).encode(), b""])
