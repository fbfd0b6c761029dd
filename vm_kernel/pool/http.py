"""Just enough HTTP to be scraped: GET and HEAD of ``/metrics``, on the service's own socket and on a loopback port.

One request a connection. Bounded in size, time and number, because any local user can connect to a port.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from vm_kernel.pool.prometheus import CONTENT_TYPE

#: bytes of a request's head
MAX_HEAD = 8192
#: seconds for all of a request, and again for taking its answer
TIMEOUT_S = 5.0
#: connections to the port at the same time; further ones are closed
MAX_CONNECTIONS = 16

_METHODS = (b"GET ", b"HEAD ")


def as_request(received: bytes) -> dict[str, Any] | None:
    """What came over the pool's socket as a request of its protocol, if it begins like one of HTTP; else None."""
    if not received.startswith(_METHODS):
        return None
    return {"op": "http", "line": received.split(b"\n", 1)[0].decode("latin-1").strip()}


def respond(line: str, text: Callable[[], str]) -> bytes:
    """The whole answer to a request line. ``text`` gives the metrics."""
    words = line.split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return _answer("400 Bad Request", "This is no HTTP request.\n")
    if words[0] not in ("GET", "HEAD"):
        return _answer("405 Method Not Allowed", "Only GET and HEAD.\n", "Allow: GET, HEAD\r\n")
    if words[1].split("?", 1)[0] != "/metrics":
        return _answer("404 Not Found", "There is nothing but /metrics here.\n")
    whole = _answer("200 OK", text(), content_type=CONTENT_TYPE)
    return whole[: whole.index(b"\r\n\r\n") + 4] if words[0] == "HEAD" else whole


async def answer(connection: socket.socket, request: dict[str, Any], text: Callable[[], str]) -> None:
    """Answer what ``as_request`` has found, and end the connection. Raises OSError."""
    loop = asyncio.get_running_loop()
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            await loop.sock_sendall(connection, respond(str(request.get("line")), text))
            connection.shutdown(socket.SHUT_WR)
        # the rest of the head may come yet: closed with unread bytes, a socket takes its answer back
        async with asyncio.timeout(1.0):
            while await loop.sock_recv(connection, MAX_HEAD):
                pass
    connection.shutdown(socket.SHUT_RD)


class MetricsPort:
    """The loopback port. ``error`` says why it does not listen, for the status; empty if it does."""

    def __init__(self, port: int, text: Callable[[], str]) -> None:
        self.port = port
        self.error = ""
        self._text = text
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self) -> None:
        """Listen. A port that cannot be had is logged, and no reason for a service to give no VMs."""
        try:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=MAX_HEAD)
        except OSError as error:
            self.error = f"{error.strerror or error}"
            structlog.get_logger().error("metrics_port_failed", port=self.port, error=self.error)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                await self._converse(reader, writer)
        except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            self._connections -= 1
            # at once: a client that does not take its answer is not waited for
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
        writer.write(respond(head.split(b"\n", 1)[0].decode("latin-1").strip(), self._text))
        async with asyncio.timeout(TIMEOUT_S):
            writer.write_eof()
            await writer.drain()
            # the client closes when it has everything
            while await reader.read(MAX_HEAD):
                pass


def _answer(status: str, text: str, headers: str = "", content_type: str = "text/plain; charset=utf-8") -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"{headers}X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
