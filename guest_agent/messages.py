"""Jupyter messages in and out of ipykernel's ZeroMQ sockets, with as little Python as can be.

Each message passes here, and in an emulated guest every line costs twenty times what it does elsewhere. So these are
pyzmq's send_multipart() and recv_multipart() without their conversions: flags are plain integers, and whether more
follows is asked of the frame. Nothing large is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import zmq

DELIMITER = b"<IDS|MSG>"
#: bytes of a part that is passed on without a copy
LARGE = 64 * 1024
#: what a poller is asked for
POLLIN, POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_NOBLOCK, _SNDMORE, _EVENTS = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.EVENTS)


def send(sock: zmq.Socket[bytes], parts: Sequence[bytes | memoryview]) -> None:
    """Send a message without signature. ``parts``: header, parent header, metadata, content, buffers."""
    sock.send(DELIMITER, _SNDMORE)
    sock.send(b"", _SNDMORE)
    last = len(parts) - 1
    for number, part in enumerate(parts):
        sock.send(part, _SNDMORE if number < last else 0, len(part) < LARGE)


def receive(sock: zmq.Socket[bytes]) -> list[zmq.Frame]:
    """The next message of a socket. Raises zmq.Again if there is none."""
    frame = sock.recv(_NOBLOCK, False)
    frames = [frame]
    while frame.more:
        frame = sock.recv(_NOBLOCK, False)
        frames.append(frame)
    return frames


def waiting(sock: zmq.Socket[bytes]) -> bool:
    """Whether another message is there: a third of the price of finding none."""
    return bool(sock.get(_EVENTS) & POLLIN)  # type: ignore[operator]


def parts_of(identity: bytes, frames: list[zmq.Frame]) -> list[bytes | memoryview] | None:
    """A message of ipykernel as the parts of ours; None if it is not one. ``frames``: [topic,] delimiter, signature…"""
    raw = [frame.buffer if len(frame) >= LARGE else frame.bytes for frame in frames]
    try:
        at = raw.index(DELIMITER)
    except ValueError:
        return None
    if len(raw) < at + 6:
        return None
    return [identity or b"".join(raw[:at]), *raw[at + 2 :]]
