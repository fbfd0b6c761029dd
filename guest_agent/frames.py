"""The frame format of the guest stream, shared by both ends. No input or output happens here.

A stream (vsock or virtio-serial) carries frames. A frame is an 8-byte header and a payload::

    u32  length of the payload, big endian, at most MAX_PAYLOAD
    u8   kind, see Kind
    u8   flags: bit 0 = more chunks of the same message follow
    u16  0

A message longer than MAX_PAYLOAD is cut into chunks. Chunks of one kind are in order and belong together; chunks
of different kinds may alternate, so that an interrupt is not stuck behind a hundred megabytes of output.

A message of a Jupyter kind is a list of byte strings (``pack_parts``): the client's ZeroMQ identity (iopub: the
topic), header, parent header, metadata, content, buffers. There is no signature: the stream is private to its two
ends, and each end signs for its own side. All other kinds carry one JSON object.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

PROTOCOL_VERSION = 1
HEADER = struct.Struct(">IBBH")
MAX_PAYLOAD = 256 * 1024
MAX_MESSAGE = 512 * 1024 * 1024
MAX_JSON_MESSAGE = 1024 * 1024
MAX_PARTS = 4096
MORE = 1


class Kind(IntEnum):
    """What a message is. The numbers are part of the protocol: never reuse one."""

    # Jupyter channels, both ways (iopub: guest to host only)
    SHELL = 1
    CONTROL = 2
    STDIN = 3
    IOPUB = 4
    # guest to host
    HELLO = 16  # the agent, once, when the host has connected
    READY = 17  # answer to UNIQUE: the clone is unique and its kernel answers
    PONG = 18  # answer to PING
    KERNEL_DIED = 19  # the kernel's process ended by itself
    INTERRUPTED = 20  # answer to INTERRUPT
    # host to guest
    UNIQUE = 32  # make this clone unique
    PING = 33
    INTERRUPT = 34  # SIGINT to the kernel's process group
    CLOCK = 35  # set the wall clock


#: kinds whose body is a list of byte strings
JUPYTER_KINDS = frozenset({Kind.SHELL, Kind.CONTROL, Kind.STDIN, Kind.IOPUB})


class FrameError(ValueError):
    """The other end broke the protocol. The stream cannot be used any more."""


def pack_parts(parts: list[bytes]) -> bytes:
    """Join byte strings so that ``unpack_parts`` can take them apart: u32 count, u32 lengths, the bytes."""
    lengths = struct.pack(f">{len(parts) + 1}I", len(parts), *map(len, parts))
    return b"".join((lengths, *parts))


def unpack_parts(body: bytes | bytearray | memoryview) -> list[bytes]:
    """Take apart what ``pack_parts`` joined. Raises FrameError unless every byte is accounted for."""
    view = memoryview(body)
    if len(view) < 4:
        raise FrameError("a message without a part count")
    count = int.from_bytes(view[:4], "big")
    offset = 4 * (count + 1)
    if count > MAX_PARTS or offset > len(view):
        raise FrameError(f"a message that claims {count} parts in {len(view)} bytes")
    parts = []
    for length in struct.unpack(f">{count}I", view[4:offset]):
        parts.append(bytes(view[offset : offset + length]))
        offset += length
    if offset != len(view):
        raise FrameError(f"parts of {offset} bytes in a message of {len(view)} bytes")
    return parts


def encode(kind: Kind, body: bytes) -> Iterator[bytes]:
    """Cut one message into frames, headers included. Ready to be sent one after the other."""
    for start in range(0, max(len(body), 1), MAX_PAYLOAD):
        chunk = body[start : start + MAX_PAYLOAD]
        more = MORE if start + MAX_PAYLOAD < len(body) else 0
        yield HEADER.pack(len(chunk), kind, more, 0) + chunk


def encode_json(kind: Kind, fields: dict[str, Any]) -> bytes:
    """One JSON message as bytes to send. Raises ValueError if it is longer than MAX_JSON_MESSAGE."""
    body = json.dumps(fields).encode()
    if len(body) > MAX_JSON_MESSAGE:
        raise ValueError(f"a {kind.name} message of {len(body)} bytes")
    return b"".join(encode(kind, body))


def decode_json(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object of a message. Raises FrameError if it is anything else."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a message that is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise FrameError("a JSON message that is not an object")
    return fields


class Decoder:
    """Turns received bytes into messages. Bounded: holds at most one partial message a kind.

    ``feed`` raises FrameError at the first violation; the stream must be closed then.
    """

    def __init__(self, accept: frozenset[Kind], max_message: int = MAX_MESSAGE) -> None:
        self._accept = accept
        self._max_message = max_message
        self._received = bytearray()
        self._partial: dict[Kind, bytearray] = {}
        self._partial_bytes = 0

    @property
    def idle(self) -> bool:
        """True if no byte of an unfinished message is held."""
        return not self._received and not self._partial

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[Kind, bytes]]:
        """Add received bytes; yield each message that they complete. Must be iterated to its end."""
        self._received += data
        offset = 0
        try:
            while len(self._received) - offset >= HEADER.size:
                length, number, flags, zero = HEADER.unpack_from(self._received, offset)
                kind = self._checked(length, number, flags, zero)
                end = offset + HEADER.size + length
                if len(self._received) < end:
                    break
                chunk = bytes(memoryview(self._received)[offset + HEADER.size : end])
                offset = end
                message = self._joined(kind, chunk, bool(flags & MORE))
                if message is not None:
                    yield kind, message
        finally:
            del self._received[:offset]

    def _checked(self, length: int, number: int, flags: int, zero: int) -> Kind:
        if length > MAX_PAYLOAD:
            raise FrameError(f"a frame of {length} bytes; the limit is {MAX_PAYLOAD}")
        if flags & ~MORE or zero:
            raise FrameError(f"a frame with unknown flags {flags:#x}, {zero:#x}")
        if number not in self._accept:
            raise FrameError(f"a frame of kind {number}, which this end does not accept")
        return Kind(number)

    def _joined(self, kind: Kind, chunk: bytes, more: bool) -> bytes | None:
        partial = self._partial.get(kind)
        if partial is None and not more:
            self._check_size(kind, len(chunk))
            return chunk
        partial = self._partial.setdefault(kind, bytearray())
        self._partial_bytes += len(chunk)
        self._check_size(kind, len(partial) + len(chunk))
        partial += chunk
        if more:
            return None
        del self._partial[kind]
        self._partial_bytes -= len(partial)
        return bytes(partial)

    def _check_size(self, kind: Kind, size: int) -> None:
        limit = self._max_message if kind in JUPYTER_KINDS else MAX_JSON_MESSAGE
        if size > limit or self._partial_bytes > self._max_message:
            raise FrameError(f"a {kind.name} message of more than {limit} bytes")
