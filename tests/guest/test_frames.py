"""The frame format: what one end encodes the other decodes, and nothing else gets through."""

from __future__ import annotations

import os
import random
import tracemalloc

import pytest

from guest_agent.frames import (
    HEADER,
    MAX_PAYLOAD,
    Decoder,
    FrameError,
    Kind,
    decode_json,
    encode,
    encode_json,
    pack_parts,
    unpack_parts,
)

EVERYTHING = frozenset(Kind)


def decode(data: bytes, **arguments: int) -> list[tuple[Kind, bytes]]:
    return list(Decoder(EVERYTHING, **arguments).feed(data))


def test_a_message_survives_whatever_pieces_it_arrives_in() -> None:
    body = os.urandom(3 * MAX_PAYLOAD + 17)
    data = b"".join(encode(Kind.IOPUB, body))
    decoder, received = Decoder(EVERYTHING), []
    generator = random.Random(1)
    while data:
        size = generator.choice([1, 7, 4096, MAX_PAYLOAD])
        received += decoder.feed(data[:size])
        data = data[size:]
    assert received == [(Kind.IOPUB, body)]
    assert decoder.idle


def test_an_empty_message_is_a_message() -> None:
    assert decode(b"".join(encode(Kind.SHELL, b""))) == [(Kind.SHELL, b"")]


def test_chunks_of_two_kinds_may_alternate() -> None:
    output, urgent = os.urandom(2 * MAX_PAYLOAD), encode_json(Kind.PONG, {"seq": 1})
    first, second = encode(Kind.IOPUB, output)
    assert [kind for kind, _ in decode(first + urgent + second)] == [Kind.PONG, Kind.IOPUB]


@pytest.mark.parametrize("parts", [[], [b""], [b"a", b"", b"\0" * 1000]])
def test_parts_survive(parts: list[bytes]) -> None:
    assert unpack_parts(pack_parts(parts)) == parts


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        b"\xff\xff\xff\xff",
        b"\0\0\0\1",
        b"\0\0\0\1\0\0\0\5abc",
        b"\0\0\0\1\0\0\0\1abc",
        b"\0\0\0\1\xff\xff\xff\xffabc",
    ],
)
def test_parts_that_do_not_add_up_are_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        unpack_parts(body)


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(0xFFFFFFFF, Kind.IOPUB, 0, 0),
        HEADER.pack(MAX_PAYLOAD + 1, Kind.IOPUB, 0, 0),
        HEADER.pack(0, 255, 0, 0),
        HEADER.pack(0, Kind.IOPUB, 2, 0),
        HEADER.pack(0, Kind.IOPUB, 0, 1),
    ],
    ids=["4 GiB", "one byte too many", "unknown kind", "unknown flag", "reserved bytes"],
)
def test_a_bad_header_is_refused_before_its_payload_arrives(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode(data)


def test_a_kind_that_this_end_does_not_accept_is_refused() -> None:
    with pytest.raises(FrameError, match="does not accept"):
        list(Decoder(frozenset({Kind.PING})).feed(encode_json(Kind.READY, {})))


def test_an_endless_message_is_cut_off() -> None:
    decoder = Decoder(EVERYTHING, max_message=1024 * 1024)
    chunk = HEADER.pack(MAX_PAYLOAD, Kind.IOPUB, 1, 0) + b"x" * MAX_PAYLOAD
    with pytest.raises(FrameError, match="more than"):
        for _ in range(6):
            list(decoder.feed(chunk))


def test_many_endless_messages_share_one_limit() -> None:
    decoder = Decoder(EVERYTHING, max_message=1024 * 1024)
    with pytest.raises(FrameError):
        for kind in (Kind.IOPUB, Kind.SHELL, Kind.STDIN) * 3:
            list(decoder.feed(HEADER.pack(MAX_PAYLOAD, kind, 1, 0) + b"x" * MAX_PAYLOAD))


def test_a_message_in_tiny_pieces_takes_little_more_than_its_size() -> None:
    decoder = Decoder(EVERYTHING)
    tiny = HEADER.pack(3, Kind.IOPUB, 1, 0) + b"xyz" + HEADER.pack(0, Kind.IOPUB, 1, 0)
    tracemalloc.start()
    try:
        for _ in range(100):
            list(decoder.feed(1000 * tiny))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000
    assert list(decoder.feed(HEADER.pack(0, Kind.IOPUB, 0, 0))) == [(Kind.IOPUB, 100_000 * b"xyz")]
    assert decoder.idle


def test_random_bytes_are_refused_soon() -> None:
    generator = random.Random(2)
    for _ in range(200):
        decoder = Decoder(EVERYTHING)
        with pytest.raises(FrameError):
            for _ in range(100):
                list(decoder.feed(generator.randbytes(64)))


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"{", b"\xff", b'{"a":' * 100000])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        decode_json(body)
