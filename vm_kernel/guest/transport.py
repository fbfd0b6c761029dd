"""How the host reaches a guest agent. The other half is ``guest_agent.transport``."""

from __future__ import annotations

import socket
from pathlib import Path

from guest_agent.transport import VSOCK_PORT
from vm_kernel.errors import CloneError


def connect(channel_path: Path | None, cid: int | None, timeout_s: float = 10.0) -> socket.socket:
    """Connect to the agent of one VM: over its virtio-serial channel's unix socket, or over vsock to ``cid``.

    Raises CloneError. The caller owns the socket. CIDs belong to the whole host: afterwards the caller checks that its
    VM is still alive, because until then the CID was that VM's, and nobody else's.
    """
    if channel_path is not None:
        return _connected(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), str(channel_path), timeout_s)
    if cid is not None and cid > socket.VMADDR_CID_HOST:
        return _connected(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), (cid, VSOCK_PORT), timeout_s)
    raise CloneError(f"A VM without a channel to its agent (CID {cid}).")


def _connected(sock: socket.socket, address: str | tuple[int, int], timeout_s: float) -> socket.socket:
    sock.settimeout(timeout_s)
    try:
        sock.connect(address)
    except OSError as error:
        sock.close()
        raise CloneError(f"The guest agent at {address} cannot be reached: {error}.{suspicion(sock)}") from None
    return sock


def suspicion(sock: socket.socket) -> str:
    """What to add to an error if the agent does not take, or drops, our connection."""
    if sock.family != socket.AF_VSOCK:
        return ""
    return " Any process of this host can connect to a CID, and may have come first; the agent serves but one."
