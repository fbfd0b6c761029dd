"""The agent's side of the egress proxy: listens in the guest, and passes PROXY messages between host and worker.

Nothing listens until the host says BEGIN: it does for sessions that may reach something. The agent is process 1 and
root; requests are read by a worker with the rights of the user (``proxy_worker.py``), forked for the first of them. A
checkpoint has no worker, and so no connection: programs that had one see it reset.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable

import zmq

from guest_agent import proxy_worker
from guest_agent.frames import Decoder, FrameError, Kind, encode_parts, unpack_parts
from guest_agent.outgoing import Outgoing
from guest_agent.proxy_link import ALL, Op, pack

#: where programs in the guest find the proxy; elsewhere than in a VM any port will do
PORT = 3128
#: bytes that wait for the worker; a host keeps to windows, and is not sent more than so many connections have
_MAX_WAITING = 64 * 1024 * 1024
#: the worker's end is waited for, so that a checkpoint has none of its sockets
_END_MS = 2000


class Proxy:
    """The listener, or the worker that has taken it over. ``send`` takes the parts of a message for the host."""

    def __init__(self, poller: zmq.Poller, in_vm: bool, send: Callable[[list[bytes]], None]) -> None:
        #: what the poller has: the worker's socket, or the listener; -1: nothing, and nothing is to be done
        self.fd = -1
        self._poller = poller
        self._in_vm = in_vm
        self._send = send
        self._listener: socket.socket | None = None
        self._sock: socket.socket | None = None
        self._pid = 0
        self._pidfd = -1
        self._workers = 0
        self._outgoing = Outgoing()
        self._decoder = Decoder(frozenset({Kind.PROXY}))

    @property
    def url(self) -> str:
        """What programs are told; empty before begin()."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}" if self._listener is not None else ""

    def begin(self) -> bool:
        """Listen. False if that is so already, as in a VM made from a checkpoint. Raises OSError."""
        if self._listener is not None:
            return False
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", PORT if self._in_vm else 0))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        self._listener = listener
        self._listen()
        return True

    def _listen(self) -> None:
        assert self._listener is not None
        self.fd = self._listener.fileno()
        self._poller.register(self.fd, zmq.POLLIN)

    def from_host(self, parts: list[bytes]) -> None:
        """A message for the worker; if there is none any more, its connections have gone, too."""
        if self._sock is None:
            return
        self._outgoing.add(encode_parts(Kind.PROXY, parts), False)
        if self._outgoing.bytes > _MAX_WAITING:
            self.end()
        else:
            self._write()

    def watch(self, room: bool) -> None:
        """Before each poll. ``room``: the host can be sent more."""
        if self._sock is not None:
            events = (zmq.POLLIN if room else 0) | (zmq.POLLOUT if self._outgoing.bytes else 0)
            self._poller.register(self.fd, events)

    def ready(self, events: int) -> None:
        """After a poll. Starts the worker, or passes on what there is, a bounded amount."""
        if self._sock is None:
            self._start()
            return
        if events & zmq.POLLOUT:
            self._write()
        if events & ~zmq.POLLOUT:
            self._read()

    def end(self) -> None:
        """End the worker and with it all connections; the listener goes on. Nothing if there is none."""
        if self._sock is None:
            return
        self._poller.register(self.fd, 0)
        self._sock.close()
        self._sock = None
        self._listen()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        ended.poll(_END_MS)
        os.close(self._pidfd)
        if not self._in_vm:  # process 1 collects every child
            os.waitpid(self._pid, 0)
        self._outgoing.clear()
        self._decoder = Decoder(frozenset({Kind.PROXY}))
        self._send(pack(Op.RESET, ALL))

    def _start(self) -> None:
        assert self._listener is not None
        ours, theirs = socket.socketpair()
        # numbers of their own, so that what is left of one worker's connections is nothing to the next
        first = self._workers % 4096 * proxy_worker.MAX_NUMBER
        self._workers += 1
        pid = os.fork()
        if pid == 0:
            proxy_worker.run(theirs, self._listener, first, self._in_vm)
        theirs.close()
        ours.setblocking(False)
        self._poller.register(self.fd, 0)
        self._sock, self._pid, self._pidfd, self.fd = ours, pid, os.pidfd_open(pid), ours.fileno()

    def _read(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end()
            return
        try:
            for _, body in self._decoder.feed(data):
                self._send(unpack_parts(body))
        except FrameError:  # the user may do to the worker what they like
            self.end()

    def _write(self) -> None:
        # an error is noticed by _read(), when the worker's last words have been read
        with contextlib.suppress(OSError):
            self._outgoing.write(self.fd)
