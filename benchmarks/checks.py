"""Measures what it costs to take nothing from a guest unchecked, in processor time.

Our parsing of a message beside bare JSON parsing; and the output policy: each kind of output under ``isolated`` beside
the same under ``trusted``, parsing included.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable

from benchmarks.samples import OURS, STOCK, Results
from guest_agent.frames import pack_parts, unpack_parts
from vm_kernel.guest.messages import parse_guest
from vm_kernel.kernel.gate import Gate

_HEADER = {"msg_id": "m" * 40, "session": "s" * 32, "username": "u", "date": "2026-01-01T00:00:00Z", "version": "5.4"}
_CONTENTS: dict[str, tuple[int, dict[str, object]]] = {
    "check_small": (2000, {"name": "stdout", "text": "hello\n"}),
    "check_text": (50, {"name": "stdout", "text": "1,2,3 and so on\n" * 16384}),
    "check_plot": (5, {"data": {"x": list(range(100_000)), "y": [n / 7 for n in range(100_000)]}}),
}
_ROWS = "".join(f"<tr><th>{row}</th>{'<td>1.25</td>' * 20}</tr>" for row in range(60))
_CHART = "<div id=c style='height:400px'></div><script>" + "draw([1.25, 2.5]);" * 60_000 + "</script>"
#: by figure: how often, message type, content
_OUTPUTS: dict[str, tuple[int, str, dict[str, object]]] = {
    "policy_stream": (2000, "stream", {"name": "stdout", "text": "hello\n"}),
    "policy_table": (
        10,
        "execute_result",
        {
            "data": {"text/html": f'<table border="1" class="dataframe">{_ROWS}</table>', "text/plain": "[60 x 20]"},
            "metadata": {},
            "execution_count": 1,
        },
    ),
    "policy_plot": (
        50,
        "display_data",
        {
            "data": {"image/png": base64.b64encode(os.urandom(60_000)).decode(), "text/plain": "<Figure>"},
            "metadata": {},
        },
    ),
    "policy_frame": (5, "display_data", {"data": {"text/html": _CHART}, "metadata": {}}),
}


def measure_checks(results: Results, rounds: int) -> None:
    """Both in turn, on the same messages: processor time."""
    for key, (count, content) in _CONTENTS.items():
        parts = _parts("display_data", content)
        body = pack_parts(parts)
        for _ in range(rounds):
            results.add(key, _us(count, lambda: parse_guest(unpack_parts(body))), OURS)  # noqa: B023
            results.add(key, _us(count, lambda: [json.loads(part) for part in parts[1:]]), STOCK)  # noqa: B023
    for key, (count, msg_type, content) in _OUTPUTS.items():
        parts = _parts(msg_type, content)
        for _ in range(rounds):
            for policy, who in (("isolated", OURS), ("trusted", STOCK)):
                gate = Gate(lambda comm_id: None, dict)
                gate.policy = policy
                results.add(key, _us(count, lambda: gate.published(parse_guest(parts))), who)  # noqa: B023


def _parts(msg_type: str, content: dict[str, object]) -> list[bytes]:
    header = _HEADER | {"msg_type": msg_type}
    return [b"topic", *(json.dumps(part).encode() for part in (header, header, {}, content))]


def _us(count: int, work: Callable[[], object]) -> float:
    begin = time.process_time()
    for _ in range(count):
        work()
    return 1e6 * (time.process_time() - begin) / count
