"""Jupyter messages of the guest: hostile input, parsed and checked before anybody sees it. No sockets here.

For the kernel process and for the Python API. Standard library only: this is imported while a user waits.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

DELIMITER = b"<IDS|MSG>"
MAX_ID_LENGTH = 512


class WireError(ValueError):
    """A message that is not to be handled. The text says why."""


class GuestMessage(NamedTuple):
    """A message of the guest, its JSON checked."""

    #: client identity on shell, control, stdin; topic on iopub
    address: bytes
    msg_type: str
    parent_id: str
    content: dict[str, Any]
    #: header, parent header, metadata, content, buffers; the first two are not to be passed on
    parts: list[bytes]


def parse_guest(parts: list[bytes]) -> GuestMessage:
    """Check and take apart what arrived from the guest. Raises WireError."""
    if len(parts) < 5:
        raise WireError(f"{len(parts)} parts")
    address, *parts = parts
    if len(address) > MAX_ID_LENGTH or address == DELIMITER:
        raise WireError("an address that is none")
    header, parent, _, content = (_guest_object(parts, place) for place in range(4))
    check_header(header)
    parent_id = parent.get("msg_id", "")
    if not isinstance(parent_id, str):
        raise WireError("a parent without a message id")
    return GuestMessage(address, header["msg_type"], parent_id, content, parts)


def _guest_object(parts: list[bytes], place: int) -> dict[str, Any]:
    """The JSON object at a place, which is made valid UTF-8.

    ipykernel sends text that has no UTF-8 form as invalid UTF-8; clients replace it, some of them fail.
    """
    part = parts[place]
    if part == b"{}":
        return {}
    try:
        text = part.decode()
    except UnicodeDecodeError:
        text = part.decode(errors="replace")
        parts[place] = text.encode()
    return _object(text)


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object in ``data``. Raises WireError if it is anything else, NaN and Infinity included."""
    if data == b"{}":
        return {}
    try:
        return _object(data.decode())
    except UnicodeDecodeError as error:
        raise WireError(f"not JSON: {error}") from None


def _object(text: str) -> dict[str, Any]:
    try:
        # raw_decode alone is quicker, and enough for what has no white space around it: what everybody sends
        value, end = _decoder.raw_decode(text) if text[:1] == "{" else (None, -1)
        if end != len(text):
            value = _decoder.decode(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WireError("not a JSON object")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_refuse)


def check_header(header: dict[str, Any]) -> None:
    """Raises WireError unless it has a type and an id. The rest of a header is not relied upon."""
    for name in ("msg_type", "msg_id"):
        value = header.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_LENGTH:
            raise WireError(f"a header without {name}")
