"""Connections through the guest stream: what both ends of the egress proxy say, and how each keeps within bounds.

Everything is a PROXY message of two parts, ``HEAD`` (what, and the number of the connection) and data. The guest opens
connections and numbers them; the host connects, or says why not. Then bytes go both ways, and each direction ends by
itself. Whoever receives confirms what it has passed on (CREDIT), and whoever sends has never more than WINDOW bytes
unconfirmed, for each connection: a slow reader at one end stops the sender at the other, and little is stored between.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum

from guest_agent.frames import FrameError

HEAD = struct.Struct(">BI")
_COUNT = struct.Struct(">I")
#: bytes of one connection that are on their way in one direction
WINDOW = 256 * 1024
#: bytes of one DATA message
CHUNK = 64 * 1024
#: stands for all connections in a RESET
ALL = 0


class Op(IntEnum):
    """What a message says. Data is empty unless something is said of it."""

    BEGIN = 1  # host to guest, once: programs in the guest may use the proxy; answered by nothing
    OPEN = 2  # guest to host; {"host": …, "port": …}
    OPENED = 3  # host to guest
    REFUSED = 4  # host to guest, instead of OPENED; {"status": HTTP status, "text": why}
    DATA = 5  # both ways; bytes
    END = 6  # both ways: no more DATA comes in this direction
    CREDIT = 7  # both ways; u32, bytes that have been passed on
    RESET = 8  # both ways: the connection is lost, with what was on its way


Send = Callable[[list[bytes]], None]


def pack(op: Op, number: int, data: bytes = b"") -> list[bytes]:
    """The parts of a message."""
    return [HEAD.pack(op, number), data]


def unpack(parts: Sequence[bytes]) -> tuple[Op, int, bytes]:
    """What a message says. Raises FrameError."""
    if len(parts) != 2 or len(parts[0]) != HEAD.size:
        raise FrameError("a PROXY message that is none")
    code, number = HEAD.unpack(parts[0])
    try:
        return Op(code), number, parts[1]
    except ValueError:
        raise FrameError(f"a PROXY message of kind {code}") from None


class Tunnel:
    """One end of one connection: a socket on one side, messages on the other. Never blocks.

    ``send`` takes the parts of a message. read() and write() raise OSError when the socket has failed; take() raises
    FrameError when the other end breaks the rules. Either way the connection is lost.
    """

    def __init__(self, number: int, send: Send) -> None:
        self.number = number
        self.sock: socket.socket | None = None
        #: bytes of DATA in either direction
        self.sent = self.received = 0
        self._send = send
        self._credit = WINDOW
        self._owed = 0
        #: one buffer, or a window of tiny messages would take many times its size
        self._waiting = bytearray()
        self._remote_ended = self._local_ended = self._shut = False

    @property
    def wants_read(self) -> bool:
        """Whether to wait for the socket to have something."""
        return self.sock is not None and self._credit > 0 and not self._local_ended

    @property
    def wants_write(self) -> bool:
        """Whether to wait for the socket to have room."""
        return self.sock is not None and (bool(self._waiting) or (self._remote_ended and not self._shut))

    @property
    def done(self) -> bool:
        """Both directions have ended, and everything has been passed on."""
        return self._local_ended and self._shut

    def take(self, op: Op, data: bytes) -> None:
        """A message of the other end: DATA, END or CREDIT."""
        if op is Op.DATA and not self._remote_ended and 0 < len(data) <= WINDOW - self._owed - len(self._waiting):
            self._waiting += data
            self.received += len(data)
        elif op is Op.END and not self._remote_ended:
            self._remote_ended = True
        elif op is Op.CREDIT and len(data) == _COUNT.size and 0 < _COUNT.unpack(data)[0] <= WINDOW - self._credit:
            self._credit += _COUNT.unpack(data)[0]
        else:
            raise FrameError(f"a PROXY message {op.name} that is out of place")

    def read(self) -> None:
        """Pass on what the socket has, as much as the other end has room for."""
        assert self.sock is not None
        try:
            data = self.sock.recv(min(self._credit, CHUNK))
        except (BlockingIOError, InterruptedError):
            return
        if data:
            self.put(data)
        else:
            self._local_ended = True
            self._send(pack(Op.END, self.number))

    def put(self, data: bytes) -> None:
        """Pass data on. It must fit into the window."""
        self._credit -= len(data)
        self.sent += len(data)
        self._send(pack(Op.DATA, self.number, data))

    def write(self) -> None:
        """Give the socket what it takes."""
        assert self.sock is not None
        with suppress(BlockingIOError, InterruptedError):
            while self._waiting:
                with memoryview(self._waiting) as view:
                    written = self.sock.send(view[:CHUNK])
                del self._waiting[:written]
                self._owed += written
        if self._remote_ended:
            if not self._waiting and not self._shut:
                self._shut = True
                with suppress(OSError):  # the peer has closed already
                    self.sock.shutdown(socket.SHUT_WR)
        elif self._owed >= WINDOW // 4:
            self._send(pack(Op.CREDIT, self.number, _COUNT.pack(self._owed)))
            self._owed = 0

    def close(self) -> None:
        """Close the socket. What has not been passed on is lost."""
        self._waiting.clear()
        if self.sock is not None:
            self.sock.close()
            self.sock = None
