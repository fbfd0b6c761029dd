"""Measures what it costs to take nothing from a guest unchecked: our parsing of a message beside bare JSON parsing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from benchmarks.samples import OURS, STOCK, Results
from guest_agent.frames import pack_parts, unpack_parts
from vm_kernel.guest.messages import parse_guest

_HEADER = {"msg_id": "m" * 40, "session": "s" * 32, "username": "u", "date": "2026-01-01T00:00:00Z", "version": "5.4"}
_CONTENTS: dict[str, tuple[int, dict[str, object]]] = {
    "check_small": (2000, {"name": "stdout", "text": "hello\n"}),
    "check_text": (50, {"name": "stdout", "text": "1,2,3 and so on\n" * 16384}),
    "check_plot": (5, {"data": {"x": list(range(100_000)), "y": [n / 7 for n in range(100_000)]}}),
}


def measure_checks(results: Results, rounds: int) -> None:
    """Both in turn, on the same messages: processor time."""
    for key, (count, content) in _CONTENTS.items():
        header = _HEADER | {"msg_type": "display_data"}
        parts = [b"topic", *(json.dumps(part).encode() for part in (header, header, {}, content))]
        body = pack_parts(parts)
        for _ in range(rounds):
            results.add(key, _us(count, lambda: parse_guest(unpack_parts(body))), OURS)  # noqa: B023
            results.add(key, _us(count, lambda: [json.loads(part) for part in parts[1:]]), STOCK)  # noqa: B023


def _us(count: int, work: Callable[[], object]) -> float:
    begin = time.process_time()
    for _ in range(count):
        work()
    return 1e6 * (time.process_time() - begin) / count
