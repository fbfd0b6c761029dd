"""Messages of clients as bytes: signatures, parsing and validation. No sockets here.

What a client sends is checked before anything of it goes on. Messages of the guest: ``vm_kernel.guest.messages``.
Standard library only: this is imported while a user waits for the kernel.
"""

from __future__ import annotations

import hmac
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from vm_kernel.guest.messages import DELIMITER, WireError, check_header, json_object

#: signatures that are remembered in order to refuse a replay; as many as jupyter_client remembers
MAX_SIGNATURES = 1 << 16

COMMS = frozenset({"comm_open", "comm_msg", "comm_close"})
_REQUESTS = frozenset(
    {
        "execute_request",
        "complete_request",
        "inspect_request",
        "history_request",
        "comm_info_request",
        "kernel_info_request",
        "connect_request",
        "shutdown_request",
        "is_complete_request",
        "interrupt_request",
    }
)
_CONTROL_REQUESTS = frozenset(
    {
        "debug_request",
        "usage_request",
        "create_subshell_request",
        "delete_subshell_request",
        "list_subshell_request",
    }
)
#: message types that a client may send, by channel
FROM_CLIENT = {
    "shell": _REQUESTS | COMMS,
    "control": _REQUESTS | _CONTROL_REQUESTS,
    "stdin": frozenset({"input_reply"}),
}
#: message types that the guest may publish. Not among them: iopub_welcome, which is for the host to say
FROM_GUEST_IOPUB = COMMS | {
    "status",
    "execute_input",
    "stream",
    "display_data",
    "update_display_data",
    "execute_result",
    "error",
    "clear_output",
    "debug_event",
}


class Message(NamedTuple):
    """A message whose signature (if it came from a client) and JSON have been checked."""

    #: ZeroMQ identities of the client, or the one frame that the guest put in their place
    identities: list[bytes]
    header: dict[str, Any]
    content: dict[str, Any]
    #: header, parent header, metadata, content, buffers, as they came
    parts: list[bytes]

    @property
    def msg_type(self) -> str:
        """Checked to be a string."""
        return self.header["msg_type"]  # type: ignore[no-any-return]

    @property
    def msg_id(self) -> str:
        """Checked to be a string."""
        return self.header["msg_id"]  # type: ignore[no-any-return]


class Signer:
    """Signs messages and checks signatures with the key of one connection file. An empty key: no signatures."""

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        """Raises ValueError if ``scheme`` is none that Jupyter has."""
        kind, _, digest = scheme.partition("-")
        if kind != "hmac" or not digest:
            raise ValueError(f"unknown signature scheme {scheme!r}")
        # hashing the key once and copying the state is quicker than starting anew for each message
        self._keyed = hmac.new(key, digestmod=digest) if key else None
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """Signature over header, parent header, metadata and content; buffers are not covered."""
        if self._keyed is None:
            return b""
        state = self._keyed.copy()
        for part in parts[:4]:
            state.update(part)
        return state.hexdigest().encode()

    def check(self, signature: bytes, parts: Sequence[bytes]) -> None:
        """Raises WireError if the signature is wrong or has been seen before."""
        if self._keyed is None:
            return
        if not hmac.compare_digest(signature, self.sign(parts)):
            raise WireError("wrong signature")
        if signature in self._seen:
            raise WireError("signature seen before")
        self._seen[signature] = None
        if len(self._seen) > MAX_SIGNATURES:
            self._seen.popitem(last=False)


def to_json(value: Any) -> bytes:
    """Compact JSON. Raises ValueError for a number that JSON cannot have: 1e999 in a guest's JSON becomes infinity."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def parse_client(frames: list[bytes], signer: Signer, channel: str) -> Message:
    """Check and take apart what arrived on a client's channel. Raises WireError."""
    try:
        at = frames.index(DELIMITER)
    except ValueError:
        raise WireError("no delimiter") from None
    parts = frames[at + 2 :]
    if at == 0 or len(parts) < 4:
        raise WireError(f"{len(frames)} frames")
    signer.check(frames[at + 1], parts)
    header, _, _, content = map(json_object, parts[:4])
    check_header(header)
    if header["msg_type"] not in FROM_CLIENT[channel]:
        raise WireError(f"a {header['msg_type'][:60]!r} on {channel}")
    if header["msg_type"] == "execute_request" and not isinstance(content.get("code"), str):
        raise WireError("a cell whose code is no text")
    return Message(frames[:at], header, content, parts)
