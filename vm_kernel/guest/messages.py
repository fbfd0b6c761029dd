"""Jupyter messages of the guest: hostile input, parsed and checked before anybody sees it. No sockets here.

For the kernel process and for the Python API. Standard library only: this is imported while a user waits.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from guest_agent.frames import MAX_DEPTH, MAX_JSON_PARTS, refuse_constant, too_deep

DELIMITER = b"<IDS|MSG>"
MAX_ID_LENGTH = 512
#: execution counts that are believed
MAX_COUNT = 10**9
#: numbers, texts, lists and objects in one JSON part, about: one takes up to 170 bytes, out of 3 bytes of JSON
MAX_VALUES = 2_000_000

_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


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
    if sum(map(len, parts[:4])) > MAX_JSON_PARTS:
        raise WireError(f"more than {MAX_JSON_PARTS} bytes besides its buffers")
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
    if len(part) > MAX_VALUES and _too_many_values(part):
        raise WireError(f"JSON with more than {MAX_VALUES} values")
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
    if too_deep(text, value):
        raise WireError(f"JSON with more than {MAX_DEPTH} levels")
    return value


_decoder = json.JSONDecoder(parse_constant=refuse_constant)


def _too_many_values(part: bytes) -> bool:
    """Before it is parsed: whether that would make more than MAX_VALUES objects, by the commas and brackets in it."""
    if _marks(part) <= MAX_VALUES:
        return False
    if part.count(b'"') > 4 * MAX_VALUES:
        return True
    # they may all be in texts: a table as CSV, say
    count = end = 0
    for text in _TEXT.finditer(part):
        count += _marks(part[end : text.start()])
        end = text.end()
        if count > MAX_VALUES:
            return True
    return count + _marks(part[end:]) > MAX_VALUES


def _marks(part: bytes) -> int:
    return part.count(b",") + part.count(b"[") + part.count(b"{")


def check_header(header: dict[str, Any]) -> None:
    """Raises WireError unless it has a type and an id. The rest of a header is not relied upon."""
    for name in ("msg_type", "msg_id"):
        value = header.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_LENGTH:
            raise WireError(f"a header without {name}")
