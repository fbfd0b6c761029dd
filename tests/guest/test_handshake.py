"""Before a VM is leased its guest answers the pool service, whose memory is everybody's: little is taken from it."""

from __future__ import annotations

import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from guest_agent.frames import HEADER, MAX_PAYLOAD, MORE, Kind, encode_json
from vm_kernel.errors import CloneError, GuestProtocolError
from vm_kernel.guest import handshake

GREETINGS: list[Callable[[socket.socket], object]] = [
    lambda sock: handshake.claim(sock, "name", 2.0),
    lambda sock: handshake.reclaim(sock, "name", same_session=True, timeout_s=2.0),
    lambda sock: handshake.check_health(sock, 2.0),
]


@contextmanager
def guest(data: bytes, times: int = 1) -> Iterator[socket.socket]:
    """One that says this, so many times, as fast as it is read."""
    ours, theirs = socket.socketpair()

    def speak() -> None:
        try:
            for _ in range(times):
                theirs.sendall(data)
            theirs.recv(1)
        except OSError:
            pass

    thread = threading.Thread(target=speak)
    with ours, theirs:
        thread.start()
        yield ours
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(30)


FLOODS = {
    "output": HEADER.pack(MAX_PAYLOAD, Kind.IOPUB, MORE, 0) + bytes(MAX_PAYLOAD),
    "files": HEADER.pack(MAX_PAYLOAD, Kind.FILES, MORE, 0) + bytes(MAX_PAYLOAD),
    "an endless answer": HEADER.pack(MAX_PAYLOAD, Kind.READY, MORE, 0) + bytes(MAX_PAYLOAD),
    "empty answers": HEADER.pack(0, Kind.PONG, 0, 0) * 100_000,
    "answers": encode_json(Kind.HELLO, {"protocol": 1, "kernel_pid": 1, "kernel_info": {}}) * 10_000,
}


@pytest.mark.parametrize("greet", GREETINGS, ids=["claim", "reclaim", "health"])
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_ends_it_and_takes_little_memory(flood: bytes, greet: Callable[[socket.socket], object]) -> None:
    tracemalloc.start()
    try:
        with guest(flood, 400) as sock, pytest.raises(GuestProtocolError) as caught:
            greet(sock)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"protocol": NaN}',
        b'{"protocol": 1, "kernel_pid": "x", "kernel_info": {}}',
        b'{"protocol": 1, "kernel_pid": 1e999, "kernel_info": {}}',
        b'{"protocol": 1, "kernel_pid": [], "kernel_info": {}}',
        b'{"protocol": 1, "kernel_pid": 1, "kernel_info": []}',
        b'{"protocol": "' + b"1" * 200_000 + b'"}',
        b'{"protocol": ' + b"1" * 100_000 + b"}",
        b'{"error": "\\u001b[2J' + b"x" * 100_000 + b'"}',
        b'{"error": ' + b"[" * 90 + b"]" * 90 + b"}",
        b'{"seq": true}',
    ],
    ids=range(12),
)
def test_a_wrong_answer_is_called_one(answer: bytes) -> None:
    for kind in (Kind.HELLO, Kind.READY, Kind.PONG):
        for greet in GREETINGS:
            error = ""
            with guest(HEADER.pack(len(answer), kind, 0, 0) + answer) as sock:
                try:
                    greet(sock)
                except (CloneError, GuestProtocolError) as caught:
                    error = caught.message
            assert error.isprintable()
            assert len(error) < 700


def test_half_an_answer_is_waited_for_and_no_longer() -> None:
    with guest(HEADER.pack(1000, Kind.HELLO, 0, 0) + b"{") as sock, pytest.raises(CloneError, match="no HELLO in time"):
        handshake.claim(sock, "name", 0.3)
