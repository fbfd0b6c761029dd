"""Who is at the other end of a connection, by the word of the host's kernel."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_CREDENTIALS = struct.Struct("3i")


class Peer(NamedTuple):
    """The process that has connected: its id then, and its user's."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """The client of a unix socket. Raises OSError."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)
