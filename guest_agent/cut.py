"""What is too large to leave the guest: replaced by a message that says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from guest_agent.frames import MAX_JSON_PARTS, MAX_MESSAGE, MAX_PARTS, Kind

#: room for the lengths that a message carries besides its parts
_OVERHEAD = 4 * (MAX_PARTS + 1)


def cut_to_size(
    kind: Kind, parts: Sequence[bytes | memoryview], limit: int = MAX_MESSAGE
) -> Sequence[bytes | memoryview]:
    """The message, or what stands in its place if the host would not take it. Parts: address, header, parent, …"""
    size = sum(map(len, parts))
    json_size = sum(map(len, parts[1:5]))
    if size + _OVERHEAD <= limit and len(parts) <= MAX_PARTS and json_size <= MAX_JSON_PARTS:
        return parts
    address, header, parent = (bytes(part) for part in parts[:3])
    fields: dict[str, Any] = json.loads(header)
    text = (
        f"A {fields.get('msg_type')} message of {size} bytes in {len(parts)} parts has been left out: it is larger "
        f"than what leaves a VM (MAX_MESSAGE: {limit} bytes in {MAX_PARTS} parts, {MAX_JSON_PARTS} without buffers)."
    )
    content: dict[str, Any]
    if kind is Kind.IOPUB:
        fields["msg_type"] = "stream"
        content = {"name": "stderr", "text": f"\nvm-kernel: {text}\n"}
    else:
        content = {"status": "error", "ename": "MessageTooLarge", "evalue": text, "traceback": [text]}
        content |= {"execution_count": 0, "user_expressions": {}, "payload": []}
    return [address, json.dumps(fields).encode(), parent, b"{}", json.dumps(content).encode()]
