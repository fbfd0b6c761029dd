"""Tells systemd what the service is doing, if systemd has started it (``Type=notify``). Nothing otherwise."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

#: seconds that the service needs for its end beyond what sessions get
END_S = 60.0

# not for QEMU, which inherits our environment
_ADDRESS = os.environ.pop("NOTIFY_SOCKET", "")


def ready() -> None:
    """The service listens."""
    _tell("READY=1")


def stopping(drain_s: float) -> None:
    """The service ends, and sessions have that many seconds: it is not to be killed meanwhile."""
    _tell(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(1e6 * (drain_s + END_S))}")


def _tell(state: str) -> None:
    if not _ADDRESS:
        return
    address = "\0" + _ADDRESS[1:] if _ADDRESS.startswith("@") else _ADDRESS
    # systemd that does not listen is no reason to end a session
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(state.encode(), address)
