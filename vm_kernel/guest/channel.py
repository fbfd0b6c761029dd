"""The host's end of the guest stream: bytes of a socket into messages and back. Standard library only.

``FrameStream`` never blocks; the kernel process has it in its poll loop. What the pool service does with a fresh
clone, one step after the other with a deadline, is in ``vm_kernel.guest.handshake``.
"""

from __future__ import annotations

import socket
from typing import Any

from guest_agent.frames import MAX_MESSAGE, Decoder, FrameError, Kind, encode_json, encode_parts
from guest_agent.outgoing import Outgoing
from vm_kernel.errors import GuestProtocolError

#: what a guest may send; anything else ends the session
FROM_GUEST = frozenset(
    {
        Kind.SHELL,
        Kind.CONTROL,
        Kind.STDIN,
        Kind.IOPUB,
        Kind.FILES,
        Kind.PROXY,
        Kind.HELLO,
        Kind.READY,
        Kind.PONG,
        Kind.KERNEL_DIED,
        Kind.INTERRUPTED,
        Kind.FROZEN,
    }
)
#: bytes that one call of receive() takes from the socket at the most, so that other work gets its turn
RECEIVE_BYTES = 1024 * 1024
#: kinds that go ahead of what is queued: they are small, and an interrupt must not wait behind an upload
_URGENT = frozenset({Kind.CONTROL, Kind.STDIN, Kind.INTERRUPT, Kind.PING, Kind.CLOCK})


class FrameStream:
    """One guest stream, in a poll loop. Owns the socket that it is given."""

    def __init__(
        self, sock: socket.socket, max_message: int = MAX_MESSAGE, accept: frozenset[Kind] = FROM_GUEST
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = Decoder(accept, max_message)
        self._outgoing = Outgoing()
        self.bytes_received = 0
        self.bytes_sent = 0

    def fileno(self) -> int:
        """The socket's descriptor, for a poller."""
        return self._sock.fileno()

    @property
    def idle(self) -> bool:
        """True if nothing is half received and nothing waits to be sent."""
        return self._decoder.idle and not self.wants_write

    @property
    def wants_write(self) -> bool:
        """True if bytes wait for the socket to become writable: poll for that, then call flush()."""
        return self._outgoing.bytes > 0

    @property
    def queued_bytes(self) -> int:
        """Bytes accepted by send_* and not yet written."""
        return self._outgoing.bytes

    def send_parts(self, kind: Kind, parts: list[bytes]) -> None:
        """Queue one message of a Jupyter kind, FILES or PROXY, and write what the socket takes now."""
        self._outgoing.add(encode_parts(kind, parts), kind in _URGENT)
        self.flush()

    def send_json(self, kind: Kind, fields: dict[str, Any]) -> None:
        """Queue one JSON message and write what the socket takes now."""
        self._outgoing.add([[encode_json(kind, fields)]], kind in _URGENT)
        self.flush()

    def flush(self) -> bool:
        """Write what the socket takes now. True when nothing is left. A dead peer is reported by receive()."""
        before = self._outgoing.bytes
        try:
            done = self._outgoing.write(self._sock.fileno())
        except OSError:
            self._outgoing.clear()
            return True
        self.bytes_sent += before - self._outgoing.bytes
        return done

    def receive(self) -> list[tuple[Kind, bytes]]:
        """The messages that have arrived, none if the socket has no data.

        Raises EOFError when the guest has gone, GuestProtocolError when it broke the protocol.
        """
        messages: list[tuple[Kind, bytes]] = []
        taken = 0
        while taken < RECEIVE_BYTES:
            try:
                data = self._sock.recv(256 * 1024)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                if messages:
                    break  # the next call reports the end
                raise EOFError("the guest has closed the stream")
            taken += len(data)
            messages.extend(self._decode(data))
        self.bytes_received += taken
        return messages

    def close(self) -> None:
        """Close the socket. The guest agent powers its VM off when it sees that."""
        self._outgoing.clear()
        self._sock.close()

    def _decode(self, data: bytes) -> list[tuple[Kind, bytes]]:
        try:
            return list(self._decoder.feed(data))
        except FrameError as error:
            raise GuestProtocolError(
                f"The guest broke the protocol: {error}. Its VM is not used any more.",
                "Restart the kernel to get a fresh VM.",
            ) from None
