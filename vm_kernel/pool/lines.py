"""Requests of a client, one a line, of bounded length."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from vm_kernel.errors import PoolRequestError
from vm_kernel.pool.protocol import MAX_REQUEST, decode


class LineReader:
    """Reads the lines of one connection."""

    def __init__(self, connection: socket.socket, parse: Callable[[bytes], dict[str, Any]] = decode) -> None:
        self._connection = connection
        self._parse = parse
        self._received = bytearray()

    async def next(self) -> dict[str, Any] | None:
        """The next request, None when the client has closed. Raises PoolRequestError."""
        loop = asyncio.get_running_loop()
        while (end := self._received.find(b"\n")) < 0:
            if len(self._received) > MAX_REQUEST:
                raise PoolRequestError(f"A request of more than {MAX_REQUEST} bytes.", "See pool/protocol.py.")
            try:
                data = await loop.sock_recv(self._connection, 4096)
            except OSError:
                data = b""
            if not data:
                if self._received:
                    self._parse(bytes(self._received))
                return None
            self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return self._parse(line)
