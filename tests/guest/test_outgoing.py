"""Large messages on their way out: framed without a copy, urgent ones ahead, and cut if no host would take them."""

from __future__ import annotations

import json
import os
import socket

import pytest

from guest_agent.cut import cut_to_size
from guest_agent.frames import MAX_PAYLOAD, Decoder, Kind, encode, encode_json, encode_parts, pack_parts, unpack_parts
from guest_agent.outgoing import Outgoing

PARTS = [[], [b""], [b"a", b"", b"b" * 1000], [b"id", b"x" * MAX_PAYLOAD, b"", b"y" * (3 * MAX_PAYLOAD + 5)],
         [b"z"] * 4000, [b"z" * 100] * 4000, [b"e" * (MAX_PAYLOAD - 8)], [b"e" * (2 * MAX_PAYLOAD - 8)]]  # fmt: skip


@pytest.mark.parametrize("parts", PARTS, ids=range(len(PARTS)))
def test_frames_without_a_copy_are_the_same_bytes(parts: list[bytes]) -> None:
    frames = list(encode_parts(Kind.IOPUB, parts))
    assert b"".join(piece for frame in frames for piece in frame) == b"".join(encode(Kind.IOPUB, pack_parts(parts)))
    assert all(len(frame) <= 16 for frame in frames)


def test_everything_arrives_however_little_the_descriptor_takes_at_a_time() -> None:
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    outgoing, decoder = Outgoing(), Decoder(frozenset(Kind))
    sent = [[b"id", os.urandom(n * 1000)] for n in (0, 1, 300, 2, 700, 3)]
    for parts in sent:
        outgoing.add(encode_parts(Kind.IOPUB, parts), urgent=False)
    assert not outgoing.write(here.fileno())
    outgoing.add([[encode_json(Kind.PONG, {})]], urgent=True)
    received = []
    while outgoing.bytes or len(received) < len(sent) + 1:
        outgoing.write(here.fileno())
        received += decoder.feed(there.recv(10000))
    outputs = [unpack_parts(body) for kind, body in received if kind is Kind.IOPUB]
    assert outputs == sent
    assert [kind for kind, _ in received].index(Kind.PONG) < len(sent)  # ahead of what was queued before it
    assert decoder.idle
    here.close()
    there.close()


@pytest.mark.parametrize(
    ("kind", "parts"), [(Kind.IOPUB, [b"x" * 2000]), (Kind.SHELL, [b"x" * 2000]), (Kind.IOPUB, [b""] * 5000)]
)
def test_what_is_too_large_is_replaced_by_words(kind: Kind, parts: list[bytes]) -> None:
    header = json.dumps({"msg_id": "1", "msg_type": "display_data"}).encode()
    message = [b"address", header, b'{"msg_id":"p"}', b"{}", b"{}", *parts]
    address, new_header, parent, _, content = map(bytes, cut_to_size(kind, message, limit=18000))
    assert (address, parent) == (b"address", b'{"msg_id":"p"}')
    assert b"MAX_MESSAGE: 18000 bytes" in content
    assert json.loads(new_header)["msg_type"] == ("stream" if kind is Kind.IOPUB else "display_data")


def test_what_fits_is_left_alone() -> None:
    message = [b"a", b"{}", b"{}", b"{}", b"{}", b"x" * 1000]
    assert cut_to_size(Kind.IOPUB, message) is message
