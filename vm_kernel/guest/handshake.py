"""What the pool service says to a fresh clone, step by step, before anybody may use it. Blocking, with a deadline."""

from __future__ import annotations

import secrets
import select
import socket
import time
import uuid
from typing import Any, NamedTuple

from guest_agent.frames import MAX_JSON_MESSAGE, PROTOCOL_VERSION, FrameError, Kind, decode_json
from vm_kernel.errors import CloneError, GuestProtocolError
from vm_kernel.guest.channel import FrameStream
from vm_kernel.guest.file_channel import printable
from vm_kernel.guest.transport import suspicion

ENTROPY_BYTES = 64
#: nothing else is taken before a VM is leased: the pool service's memory is everybody's
_ANSWERS = frozenset({Kind.HELLO, Kind.READY, Kind.PONG})


class Hello(NamedTuple):
    """What the agent says when the host has connected."""

    kernel_pid: int
    kernel_info: dict[str, Any]


def claim(sock: socket.socket, name: str, timeout_s: float = 30.0) -> Hello:
    """Take the agent's only connection, make the clone unique, and see that its kernel answers.

    The pool service calls it in its executor for every clone. ``name`` becomes the guest's host name. Raises
    CloneError if the guest does not answer in time or says that it failed, GuestProtocolError if it sends garbage.
    The socket belongs to the caller, before and after.
    """
    stream = _stream(sock)
    deadline = time.monotonic() + timeout_s
    hello = check_hello(_expect(stream, Kind.HELLO, deadline, suspicion(sock)))
    stream.send_json(Kind.UNIQUE, _identity(name))
    check_ready(_expect(stream, Kind.READY, deadline))
    ping(stream, deadline)
    if not stream.idle:
        raise GuestProtocolError("The guest sent more than it was asked for, before its VM was leased.")
    return hello


def reclaim(sock: socket.socket, name: str, *, same_session: bool, timeout_s: float = 30.0) -> None:
    """Take the connection of a VM that was made from a checkpoint, and make it unique. It stays silent until THAW.

    The pool service calls it in its executor. ``same_session``: the session that saved the checkpoint goes on in it,
    with its random states and names; otherwise it becomes another's (a fork) and gets its own. Raises as claim().
    """
    stream = _stream(sock)
    deadline = time.monotonic() + timeout_s
    stream.send_json(Kind.UNIQUE, _identity(name) | {"same_session": same_session})
    check_ready(_expect(stream, Kind.READY, deadline, suspicion(sock)))
    if not stream.idle:
        raise GuestProtocolError("The guest sent more than it was asked for, before its VM was leased.")


def check_hello(fields: dict[str, Any]) -> Hello:
    """What a HELLO says. Raises GuestProtocolError."""
    pid, info = fields.get("kernel_pid"), fields.get("kernel_info")
    if fields.get("protocol") != PROTOCOL_VERSION or type(pid) is not int or not isinstance(info, dict):
        spoken = printable(repr(fields.get("protocol")))[:40]
        raise GuestProtocolError(
            f"The guest agent speaks protocol {spoken}; this host speaks {PROTOCOL_VERSION}.",
            "Run `vm-kernel pool stop`; the golden snapshot is built anew at the next start.",
        )
    return Hello(pid, info)


def check_ready(fields: dict[str, Any]) -> None:
    """Raises CloneError if a READY says that the guest has failed."""
    if "error" in fields:
        raise CloneError(f"The guest could not be made unique: {printable(str(fields['error']))}")


def check_health(sock: socket.socket, timeout_s: float = 5.0) -> dict[str, Any]:
    """Ask a warm VM's agent how it is. Raises CloneError or GuestProtocolError if it is not to be leased.

    The pool service calls it in its executor; nobody else may read from the socket meanwhile.
    """
    stream = _stream(sock)
    health = ping(stream, time.monotonic() + timeout_s)
    if health.get("kernel_alive") is not True:
        raise CloneError("The kernel of a warm VM has ended.")
    if not stream.idle:
        raise GuestProtocolError("The guest sent more than it was asked for, before its VM was leased.")
    return health


def ping(stream: FrameStream, deadline: float) -> dict[str, Any]:
    """A PING and its PONG."""
    seq = secrets.randbits(32)
    stream.send_json(Kind.PING, {"seq": seq})
    pong = _expect(stream, Kind.PONG, deadline)
    if pong.get("seq") != seq:
        raise GuestProtocolError("The guest answered a PING that nobody sent.")
    return pong


def _stream(sock: socket.socket) -> FrameStream:
    return FrameStream(sock, MAX_JSON_MESSAGE, _ANSWERS)


def _identity(name: str) -> dict[str, Any]:
    return {
        "entropy": secrets.token_hex(ENTROPY_BYTES),
        "time_ns": time.time_ns(),
        "hostname": name,
        "machine_id": uuid.uuid4().hex,
        "boot_id": str(uuid.uuid4()),
        "session": str(uuid.uuid4()),
    }


def _wait(stream: FrameStream, timeout_s: float) -> None:
    # not select(), which knows no descriptors above 1023
    poller = select.poll()
    poller.register(stream, select.POLLIN | (select.POLLOUT if stream.wants_write else 0))
    poller.poll(1000 * timeout_s)


def _expect(stream: FrameStream, kind: Kind, deadline: float, suspected: str = "") -> dict[str, Any]:
    """The next message, which must be of that kind. ``suspected`` goes behind the error if the stream ends."""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise CloneError(f"The guest sent no {kind.name} in time.")
        _wait(stream, left)
        stream.flush()
        try:
            messages = stream.receive()
        except EOFError:
            raise CloneError(f"The guest closed its stream instead of sending {kind.name}.{suspected}") from None
        if messages:
            break
    if len(messages) != 1 or messages[0][0] is not kind:
        sent = ", ".join(other.name for other, _ in messages[:5])
        raise GuestProtocolError(f"The guest sent {len(messages)} messages ({sent}) where one {kind.name} was due.")
    try:
        return decode_json(messages[0][1])
    except FrameError as error:
        raise GuestProtocolError(f"The guest broke the protocol: {error}.") from None
