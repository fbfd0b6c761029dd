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
ends, and each end signs for its own side. FILES and PROXY messages are lists of two, a header and data, see
file_link.py and proxy_link.py. All other kinds carry one JSON object.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

PROTOCOL_VERSION = 1
HEADER = struct.Struct(">IBBH")
MAX_PAYLOAD = 256 * 1024
#: bytes of one message; what is larger never leaves the guest
MAX_MESSAGE = 256 * 1024 * 1024
MAX_JSON_MESSAGE = 1024 * 1024
#: bytes of a Jupyter message without its buffers: what is parsed takes several times its size
MAX_JSON_PARTS = 64 * 1024 * 1024
#: lists and objects within each other in any JSON
MAX_DEPTH = 100
MAX_PARTS = 4096
#: bytes from which on a piece of a message is kept by itself until the rest has come, and not copied twice
_LARGE_PIECE = 4096
MORE = 1


#: one frame ready to be written: its header, and slices of what it carries
Frame = list[bytes | memoryview]


class Kind(IntEnum):
    """What a message is. The numbers are part of the protocol: never reuse one."""

    # Jupyter channels, both ways (iopub: guest to host only)
    SHELL = 1
    CONTROL = 2
    STDIN = 3
    IOPUB = 4
    # both ways
    FILES = 5  # see file_link.py
    PROXY = 6  # see proxy_link.py
    # guest to host
    HELLO = 16  # the agent, once, when the host has connected
    READY = 17  # answer to UNIQUE: the clone is unique and its kernel answers
    PONG = 18  # answer to PING
    KERNEL_DIED = 19  # the kernel's process ended by itself
    INTERRUPTED = 20  # answer to INTERRUPT
    FROZEN = 21  # answer to FREEZE: nothing more comes until THAW
    # host to guest
    UNIQUE = 32  # make this clone unique
    PING = 33
    INTERRUPT = 34  # SIGINT to the kernel's process group
    CLOCK = 35  # set the wall clock
    FREEZE = 36  # fall silent: a checkpoint is about to be saved
    THAW = 37  # go on: it has been saved


#: kinds that carry Jupyter messages
JUPYTER_KINDS = frozenset({Kind.SHELL, Kind.CONTROL, Kind.STDIN, Kind.IOPUB})


class FrameError(ValueError):
    """The other end broke the protocol. The stream cannot be used any more."""


def pack_parts(parts: list[bytes]) -> bytes:
    """Join byte strings so that ``unpack_parts`` can take them apart: u32 count, u32 lengths, the bytes."""
    lengths = struct.pack(f">{len(parts) + 1}I", len(parts), *map(len, parts))
    return b"".join((lengths, *parts))


def encode_parts(kind: Kind, parts: Sequence[bytes | memoryview]) -> Iterator[Frame]:
    """``pack_parts`` and ``encode`` in one, without a copy of a large message: its frames point into the parts."""
    lengths = struct.pack(f">{len(parts) + 1}I", len(parts), *map(len, parts))
    left = len(lengths) + sum(map(len, parts))
    if left <= MAX_PAYLOAD:
        yield [b"".join((HEADER.pack(left, kind, 0, 0), lengths, *parts))]
        return
    frame: Frame = []
    room = MAX_PAYLOAD
    for part in (lengths, *parts):
        view = memoryview(part)
        while view:
            frame.append(view[:room])
            view, room = view[room:], room - len(frame[-1])
            if not room:
                left -= MAX_PAYLOAD
                yield _framed(kind, MAX_PAYLOAD, MORE if left else 0, frame)
                frame, room = [], MAX_PAYLOAD
    if frame:
        yield _framed(kind, left, 0, frame)


def _framed(kind: Kind, length: int, more: int, slices: Frame) -> Frame:
    frame: Frame = [HEADER.pack(length, kind, more, 0), *slices]
    return frame if len(frame) < 16 else [b"".join(frame)]


def unpack_parts(body: bytes) -> list[bytes]:
    """Take apart what ``pack_parts`` joined. Raises FrameError unless every byte is accounted for."""
    size = len(body)
    if size < 4:
        raise FrameError("a message without a part count")
    count = int.from_bytes(body[:4], "big")
    offset = 4 * (count + 1)
    if count > MAX_PARTS or offset > size:
        raise FrameError(f"a message that claims {count} parts in {size} bytes")
    parts = []
    for length in struct.unpack_from(f">{count}I", body, 4):
        end = offset + length
        parts.append(body[offset:end])
        offset = end
    if offset != size:
        raise FrameError(f"parts of {offset} bytes in a message of {size} bytes")
    return parts


def encode(kind: Kind, body: bytes) -> Iterator[bytes]:
    """Cut one message into frames, headers included. Ready to be sent one after the other."""
    size = len(body)
    if size <= MAX_PAYLOAD:
        yield HEADER.pack(size, kind, 0, 0) + body
        return
    view = memoryview(body)
    for start in range(0, size, MAX_PAYLOAD):
        chunk = view[start : start + MAX_PAYLOAD]
        more = MORE if start + MAX_PAYLOAD < size else 0
        yield b"".join((HEADER.pack(len(chunk), kind, more, 0), chunk))


def encode_json(kind: Kind, fields: dict[str, Any]) -> bytes:
    """One JSON message as bytes to send. Raises ValueError if it is longer than MAX_JSON_MESSAGE."""
    body = json.dumps(fields).encode()
    if len(body) > MAX_JSON_MESSAGE:
        raise ValueError(f"a {kind.name} message of {len(body)} bytes")
    return b"".join(encode(kind, body))


def decode_json(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object of a message. Raises FrameError if it is anything else."""
    try:
        text = body.decode()
        fields = _decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a message that is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise FrameError("a JSON message that is not an object")
    if too_deep(text, fields):
        raise FrameError(f"a JSON message with more than {MAX_DEPTH} levels")
    return fields


def too_deep(text: str, value: Any) -> bool:
    """Whether ``value``, parsed from ``text``, has more than MAX_DEPTH levels: who walks through it may recurse."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if type(item) is dict else item)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def refuse_constant(name: str) -> Any:
    """For a JSONDecoder: Python takes NaN and Infinity for JSON, nobody else does."""
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=refuse_constant)


class Decoder:
    """Turns received bytes into messages. Bounded: holds at most one partial message a kind.

    ``feed`` raises FrameError at the first violation; the stream must be closed then.
    """

    def __init__(self, accept: frozenset[Kind], max_message: int = MAX_MESSAGE) -> None:
        self._accept = {int(kind): kind for kind in accept}
        self._max_message = max_message
        #: the beginning of a header that has not arrived whole
        self._header = b""
        #: kind and MORE of the frame that is being received, and how many of its bytes are missing
        self._frame: tuple[Kind, int] | None = None
        self._missing = 0
        #: what there is of unfinished messages: pieces, joined once, and how long they are with the current frame
        self._pieces: dict[Kind, list[bytes | bytearray]] = {}
        self._sizes: dict[Kind, int] = {}

    @property
    def idle(self) -> bool:
        """True if no byte of an unfinished message is held."""
        return not (self._header or self._frame or self._pieces)

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Add received bytes; yield each message that they complete. Must be iterated to its end."""
        if self._header:
            data = self._header + data
            self._header = b""
        offset, size = 0, len(data)
        while True:
            if self._frame is None:
                if size - offset < HEADER.size:
                    self._header = data[offset:]
                    return
                self._begin(*HEADER.unpack_from(data, offset))
                offset += HEADER.size
            assert self._frame is not None
            kind, more = self._frame
            piece = data[offset : offset + self._missing]
            offset += len(piece)
            self._missing -= len(piece)
            if not self._missing and not more and kind not in self._pieces:
                # the usual case: the whole of a message in one piece
                self._frame = None
                del self._sizes[kind]
                yield kind, piece
                continue
            _add(self._pieces.setdefault(kind, []), piece)
            if self._missing:
                return
            self._frame = None
            if not more:
                del self._sizes[kind]
                yield kind, b"".join(self._pieces.pop(kind))

    def _begin(self, length: int, number: int, flags: int, zero: int) -> None:
        """A frame's header has arrived."""
        if length > MAX_PAYLOAD:
            raise FrameError(f"a frame of {length} bytes; the limit is {MAX_PAYLOAD}")
        if flags & ~MORE or zero:
            raise FrameError(f"a frame with unknown flags {flags:#x}, {zero:#x}")
        kind = self._accept.get(number)
        if kind is None:
            raise FrameError(f"a frame of kind {number}, which this end does not accept")
        size = self._sizes[kind] = self._sizes.get(kind, 0) + length
        limit = self._max_message if kind in JUPYTER_KINDS else MAX_JSON_MESSAGE
        if size > limit or sum(self._sizes.values()) > self._max_message:
            raise FrameError(f"a {kind.name} message of more than {limit} bytes")
        self._frame = kind, flags
        self._missing = length


def _add(pieces: list[bytes | bytearray], piece: bytes) -> None:
    """Append a piece; small ones together, or a message in tiny pieces would take many times its size."""
    if len(piece) >= _LARGE_PIECE:
        pieces.append(piece)
    elif pieces and isinstance(pieces[-1], bytearray):
        pieces[-1] += piece
    else:
        pieces.append(bytearray(piece))
