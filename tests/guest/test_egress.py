"""The egress proxy without a VM: the guest's worker and the host's end over a socket, with programs and servers.

With a guest that lies: test_lying_proxy.py. In VMs: tests/kernel/test_egress.py, tests/sandbox/test_egress.py.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from guest_agent.frames import FrameError
from guest_agent.proxy_http import BadRequest, parse_head
from guest_agent.proxy_link import WINDOW
from guest_agent.proxy_worker import Worker
from tests.conftest import wait_until
from tests.guest.egress_host import EgressHost
from tests.index_server import index_server

TIMEOUT_S = 60.0


class Proxy:
    """A worker and its host; ``ask`` makes a connection of a program in the guest."""

    def __init__(self, host: EgressHost, port: int) -> None:
        self.host = host
        self.port = port

    def open(self, request: str | bytes = b"") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.settimeout(TIMEOUT_S)
        sock.sendall(request.encode() if isinstance(request, str) else request)
        return sock

    def ask(self, request: str | bytes) -> bytes:
        with closing(self.open(request)) as sock:
            return _all(sock)

    def tunnel(self, port: int) -> socket.socket:
        sock = self.open(f"CONNECT localhost:{port} HTTP/1.1\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 200 Connection established\r\n\r\n"
        return sock


@contextmanager
def proxy(*ports: int, **settings: object) -> Iterator[Proxy]:
    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def serve() -> None:
        with suppress(EOFError, OSError, FrameError):
            Worker(theirs, listener, 0).serve()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with EgressHost(ours, *ports, **settings) as host:
        yield Proxy(host, listener.getsockname()[1])
        threads = {thread for thread in threading.enumerate() if thread.name.startswith("egress")}
    thread.join(TIMEOUT_S)
    for left in threads:
        left.join(TIMEOUT_S)
        assert not left.is_alive(), "the thread outlives its session"
    listener.close()
    theirs.close()


@pytest.fixture(scope="module")
def index() -> Iterator[int]:
    with index_server() as port:
        yield port


def _all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


def test_plain_http_is_served_with_a_request_that_the_server_understands(index: int) -> None:
    with proxy(index) as guest:
        url = f"http://localhost:{index}/bytes/1000000"
        answer = guest.ask(f"GET {url} HTTP/1.1\r\nHost: localhost\r\nProxy-Connection: keep-alive\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(bytes(range(250)) * 4000)
        body = os.urandom(3_000_000)
        head = f"POST http://localhost:{index}/take HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        assert guest.ask(head.encode() + body).endswith(b"\r\n\r\n3000000")
        wait_until(lambda: guest.host.verdicts() == ["opened", "closed"] * 2, TIMEOUT_S, "both are noted")
        closed = guest.host.notes[-1]
        assert closed["sent_bytes"] > 3_000_000
        assert (closed["host"], closed["port"], closed["address"]) == ("localhost", index, "127.0.0.1")


def test_tunnels_pass_bytes_both_ways_and_each_direction_ends_by_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, proxy(port := server.getsockname()[1]) as guest:
        client = guest.tunnel(port)
        outside, _ = server.accept()
        with client, outside:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            outside.settimeout(TIMEOUT_S)
            assert _all(outside) == b"question"
            outside.sendall(b"answer")
            outside.shutdown(socket.SHUT_WR)
            assert _all(client) == b"answer"
        wait_until(lambda: guest.host.verdicts() == ["opened", "closed"], TIMEOUT_S, "it has ended")
        assert guest.host.notes[-1]["reason"] == "ended"


def test_a_slow_reader_stops_the_sender_and_nobody_else(index: int) -> None:
    with proxy(index) as guest:
        slow = guest.open(f"GET http://localhost:{index}/bytes/50000000 HTTP/1.1\r\n\r\n")
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert guest.ask(f"GET http://localhost:{index}/bytes/2000000 HTTP/1.1\r\n\r\n").endswith(b"\xf8\xf9")
        connection = next(iter(guest.host.egress.connections.values()))
        sent = -1
        while sent != connection.sent:  # until nothing moves
            sent = connection.sent
            time.sleep(0.3)
        assert connection.sent < WINDOW + 20_000_000, "what sockets hold, and a window"
        assert guest.host.egress._outbox_bytes < WINDOW
        slow.close()
        wait_until(lambda: not guest.host.egress.connections, TIMEOUT_S, "its end is noticed")


def test_a_lost_connection_is_a_reset_and_no_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, proxy(port := server.getsockname()[1]) as guest:
        with guest.tunnel(port) as client:
            outside, _ = server.accept()
            outside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            outside.close()
            with pytest.raises(ConnectionResetError):
                client.recv(10)
        with guest.tunnel(port) as client:
            outside, _ = server.accept()
            with outside:
                guest.host.egress.close()
                assert outside.recv(10) == b"", "the end of the session ends its connections"


def test_limits_are_kept_and_named(index: int) -> None:
    get = f"GET http://localhost:{index}/bytes/2000000 HTTP/1.1\r\n\r\n"
    with proxy(index, max_connections=2, max_mib=1) as guest:
        with guest.tunnel(index), guest.tunnel(index):
            assert b"503 Service Unavailable: The profile 'mine' of this session has 2 conn" in guest.ask(get)
        wait_until(lambda: not guest.host.egress.connections, TIMEOUT_S, "there is room again")
        with pytest.raises(ConnectionResetError):
            guest.ask(get)
        assert b"403 Forbidden" in (answer := guest.ask(get))
        assert b"c.PoolConfig.egress_max_mib" in answer
    with proxy(index, idle_s=0.2) as guest:
        with guest.tunnel(index) as client, pytest.raises(ConnectionResetError):
            client.recv(10)
        assert guest.host.last_note("closed")["reason"] == "idle for 0.2 s"


def test_refusals_look_nothing_up_and_say_what_would_permit_it(index: int) -> None:
    with proxy(index) as guest:
        for target in ("pypi.org:443", "localhost:1", "127.0.0.1:80", "[::1]:80", "a" * 300 + ":1"):
            assert b"HTTP/1.1 403 Forbidden: " in guest.ask(f"CONNECT {target} HTTP/1.1\r\n\r\n")
        wait_until(lambda: guest.host.verdicts() == ["refused"] * 5, TIMEOUT_S, "all are noted")
        assert guest.host.egress._dialler._threads == 0
    with proxy(index, allow_private=[]) as guest:
        answer = guest.ask(f"CONNECT localhost:{index} HTTP/1.1\r\n\r\n")
        assert b"403 Forbidden: localhost leads to " in answer
        assert b"a loopback address, which a VM may not reach. 'allow_private'" in answer
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with proxy(free, allow=[f"localhost:{free}"], allow_private=["127.0.0.0/8"]) as guest:
        answer = guest.ask(f"CONNECT localhost:{free} HTTP/1.1\r\n\r\n")
        assert b"502 Bad Gateway: the host cannot connect to localhost" in answer
        assert "127.0.0.1: " in guest.host.last_note("failed")["reason"]
    with proxy(allow=[]) as guest:
        assert b"403 Forbidden: The profile 'mine'" in guest.ask("CONNECT pypi.org:443 HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    "request_head",
    [
        *(b"GET / HTTP/1.1", b"x", b"", b"CONNECT a HTTP/1.1", b"CONNECT a:b:1x HTTP/1.1", b"CONNECT a:99999 HTTP/1.1"),
        *(
            b"GET ftp://a/ HTTP/1.1",
            b"GET http://u:p@a/ HTTP/1.1",
            b"GET http:/// HTTP/1.1",
            b"CONNECT \xff:1 HTTP/1.1",
        ),
    ],
)
def test_what_is_no_request_to_a_proxy_is_told_so(request_head: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_head(request_head)


def test_heads_of_requests_are_bounded(index: int) -> None:
    with proxy(index) as guest:
        answer = guest.ask(b"GET http://localhost/ HTTP/1.1\r\nX: " + b"x" * 70_000)
        assert b"400 Bad Request: the head of the request is too large" in answer
        assert parse_head(b"GET http://A.org:81?q HTTP/1.0")[:2] == ("A.org", 81)
        assert parse_head(b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\nConnection: x").head == (
            b"GET /b?c HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
