"""A guest that lies to the egress proxy: the host keeps within its bounds, reaches nothing more, and goes on."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from guest_agent.frames import Decoder, Kind, encode_parts, unpack_parts
from guest_agent.proxy_link import ALL, HEAD, WINDOW, Op, pack, unpack
from tests.conftest import wait_until
from tests.guest.egress_host import EgressHost
from vm_kernel.guest import egress

TIMEOUT_S = 60.0


def request(number: int, host: object, port: object) -> list[bytes]:
    """An OPEN."""
    return pack(Op.OPEN, number, json.dumps({"host": host, "port": port}).encode())


class Liar:
    """A guest that sends what it likes, and listens only when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(TIMEOUT_S)
        self._decoder = Decoder(frozenset({Kind.PROXY}))
        self._heard: list[tuple[Op, int, bytes]] = []

    def raw(self, *parts: bytes) -> None:
        for frame in encode_parts(Kind.PROXY, list(parts)):
            self.sock.sendall(b"".join(frame))

    def say(self, op: Op, number: int, data: bytes = b"") -> None:
        self.raw(*pack(op, number, data))

    def ask(self, number: int, host: str = "localhost", port: int = 0) -> None:
        self.raw(*request(number, host, port))

    def hear(self) -> tuple[Op, int, bytes]:
        while not self._heard:
            messages = self._decoder.feed(self.sock.recv(1 << 16))
            self._heard += [unpack(unpack_parts(body)) for _, body in messages]
        return self._heard.pop(0)

    def expect(self, op: Op, number: int) -> bytes:
        while (heard := self.hear())[:2] != (op, number):
            pass
        return heard[2]


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(TIMEOUT_S)
        yield sock


@contextmanager
def liar(server: socket.socket) -> Iterator[tuple[Liar, EgressHost, int]]:
    ours, theirs = socket.socketpair()
    port = server.getsockname()[1]
    with EgressHost(ours, port) as host, theirs:
        guest = Liar(theirs)
        guest.expect(Op.BEGIN, ALL)
        yield guest, host, port
        # it still serves
        guest.ask(7777, port=port)
        guest.expect(Op.OPENED, 7777)
        guest.say(Op.DATA, 7777, b"honest")
        while (outside := server.accept()[0]).recv(10) != b"honest":
            outside.close()
        outside.close()


NO_PORTS: list[object] = [0, -1, 65536, 2**70, True, "80"]
NO_NAMES = ["", ".", "a\r\nb", "\0", "ı.org", "..", "*.org"]
#: messages, as their parts
LIES: dict[str, list[list[bytes]]] = {
    "no parts": [[]],
    "three parts": [[b"", b"", b""]],
    "a short head": [[b"\1", b""]],
    "an unknown kind": [[HEAD.pack(99, 1), b""]],
    "what the host says": [pack(op, 1, b"{}") for op in (Op.BEGIN, Op.OPENED, Op.REFUSED)],
    "of nothing": [pack(op, 1, b"xxxx") for op in Op if op is not Op.OPEN],
    "all of it": [pack(op, ALL, b"xxxx") for op in Op],
    "no json": [pack(Op.OPEN, 1, b"\xff")],
    "a list": [pack(Op.OPEN, 1, b"[1]")],
    "deep": [pack(Op.OPEN, 1, b"[" * 1000), pack(Op.OPEN, 2, b"[" * 100_000)],
    "a giant": [request(1, "a" * 900, 80), request(2, "a" * 900_000, 80)],
    "no text": [request(1, 7, 7)],
    "a port that is none": [request(number, "localhost", port) for number, port in enumerate(NO_PORTS, 1)],
    "names that are none": [request(number, name, 80) for number, name in enumerate(NO_NAMES, 1)],
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lies_change_nothing(server: socket.socket, lie: list[list[bytes]]) -> None:
    with liar(server) as (guest, host, _):
        for parts in lie:
            guest.raw(*parts)
    assert all(note["host"].isascii() and note["host"].isprintable() for note in host.notes)
    assert {note["verdict"] for note in host.notes if note["host"] != "localhost"} <= {"refused"}
    assert all(len(note["host"]) <= 255 for note in host.notes)


@pytest.mark.parametrize(
    "data",
    [(Op.DATA, b""), (Op.CREDIT, struct.pack(">I", 1)), (Op.CREDIT, b""), (Op.OPENED, b""), (Op.BEGIN, b"")],
    ids=lambda data: f"{data[0].name}-{len(data[1])}",
)
def test_a_connection_that_breaks_the_rules_is_reset(server: socket.socket, data: tuple[Op, bytes]) -> None:
    with liar(server) as (guest, host, port):
        guest.ask(1, port=port)
        guest.expect(Op.OPENED, 1)
        guest.say(data[0], 1, data[1])
        guest.expect(Op.RESET, 1)
        guest.say(Op.DATA, 1, b"after its end")
        outside, _ = server.accept()
        with outside:
            assert outside.recv(10) == b""
        assert host.last_note("closed")["reason"] == "the guest has broken the protocol"


def test_bytes_after_the_end_are_not_passed_on(server: socket.socket) -> None:
    with liar(server) as (guest, host, port):
        guest.ask(1, port=port)
        guest.say(Op.DATA, 1, b"x")
        guest.say(Op.END, 1)
        guest.say(Op.DATA, 1, b"y")
        guest.expect(Op.RESET, 1)
        wait_until(lambda: host.verdicts()[-1:] in (["closed"], ["failed"]), TIMEOUT_S, "it is noted")
        assert host.notes[-1]["sent_bytes"] == 1


def test_no_more_than_a_window_is_taken_from_a_guest(server: socket.socket) -> None:
    with liar(server) as (guest, host, port):
        guest.ask(1, port=port)
        guest.expect(Op.OPENED, 1)
        outside, _ = server.accept()  # which reads nothing
        with outside:
            before = psutil.Process().memory_info().rss
            chunk = os.urandom(60_000)
            for _ in range(1000):  # 60 MB, and credit for at most one window
                guest.say(Op.DATA, 1, chunk)
            guest.expect(Op.RESET, 1)
            assert psutil.Process().memory_info().rss - before < 20_000_000
        assert host.last_note("closed")["sent_bytes"] < 50 * WINDOW


def _counted(host: EgressHost) -> int:
    """Attempts that the log tells of, one by one or as a number."""
    return len(host.notes) + sum(note["unnoted"] for note in host.notes) + host.budget.unnoted


def test_a_flood_of_requests_is_bounded_and_counted(server: socket.socket) -> None:
    """Nobody listens to the answers: they, and the notes of it, do not pile up."""
    with liar(server) as (guest, host, _):
        before = psutil.Process().memory_info().rss
        for number in range(1, 50_001):
            guest.ask(number, "pypi.org", 443)
        guest.say(Op.RESET, ALL)
        wait_until(lambda: _counted(host) == 50_000, TIMEOUT_S, "each is noted, or counted")
        assert len(host.notes) < egress.BURST + 60 * egress.RATE_PER_S
        assert host.egress._outbox_bytes <= egress.MAX_WAITING + 4096
        assert psutil.Process().memory_info().rss - before < 30_000_000
        guest.sock.settimeout(0.2)
        while host.egress._outbox or host.stream.wants_write:  # now it listens
            with suppress(TimeoutError):
                guest.hear()
        guest.sock.settimeout(TIMEOUT_S)
        host.budget._allowance = egress.BURST  # a while later


def test_connections_that_are_opened_and_dropped_leave_nothing(server: socket.socket) -> None:
    with liar(server) as (guest, host, port):
        descriptors = psutil.Process().num_fds()
        for number in range(1, 101):
            guest.ask(number, port=port)
            guest.ask(number, port=port)  # a number that is in use
            guest.say(Op.RESET, number)
        wait_until(lambda: not host.egress.connections, TIMEOUT_S, "all are forgotten")
        server.setblocking(False)
        try:
            while True:
                server.accept()[0].close()
        except BlockingIOError:
            server.settimeout(TIMEOUT_S)
        wait_until(lambda: psutil.Process().num_fds() <= descriptors + 6, TIMEOUT_S, "no socket is left")
