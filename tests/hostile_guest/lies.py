"""What a guest answers, by name, when a host magic asks it: to FREEZE, and to requests about files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from guest_agent.frames import HEADER, Kind
from tests.hostile_guest.attacks import MIB, Attacker

Fields = dict[str, Any]


def _files(a: Attacker, request: object, data: bytes = b"", **fields: Any) -> None:
    a.parts(Kind.FILES, [json.dumps({"id": request, **fields}).encode(), data])


def _another_transfer(a: Attacker) -> None:
    """Never what is waited for, and never silence."""
    for _ in range(120):
        _files(a, 1, t="data")
        time.sleep(0.1)


FROZEN: dict[str, Callable[[Attacker], None]] = {
    "silent": lambda a: None,
    "frozen garbage": lambda a: a.frame(Kind.FROZEN, b"[1]"),
    "frozen for ever": lambda a: a.flood(HEADER.pack(0, Kind.FROZEN, 0, 0), 8 * MIB),
    "empty messages": lambda a: a.flood(HEADER.pack(0, Kind.HELLO, 0, 0), 8 * MIB),
    "another transfer": _another_transfer,
}


def _get(lie: Callable[[Attacker, int], object]) -> Callable[[Attacker, Fields], None]:
    """There is a folder; what is in it is the lie."""

    def answer(a: Attacker, fields: Fields) -> None:
        if fields["op"] == "stat":
            _files(a, fields["id"], t="done", kind="folder")
        else:
            lie(a, fields["id"])

    return answer


def _file(a: Attacker, request: int, name: object) -> None:
    _files(a, request, b"evil", t="file", name=name, size=4, mode=0o777, crc32=0)


def _foreign(a: Attacker, fields: Fields) -> None:
    for _ in range(400):
        _files(a, 1, bytes(1000), t="data")
        time.sleep(0.01)


FILES: dict[str, Callable[[Attacker, Fields], None]] = {
    "up": _get(lambda a, request: _file(a, request, "../../evil")),
    "absolute": _get(lambda a, request: _file(a, request, "/tmp/evil")),
    "no text": _get(lambda a, request: _file(a, request, [[]])),
    "surrogate": _get(lambda a, request: _file(a, request, "\udcff\ud800")),
    "link": _get(lambda a, request: _files(a, request, t="link", name="a", target="/etc/passwd")),
    "damaged": _get(lambda a, request: _file(a, request, "a")),
    "deep reason": _get(lambda a, request: _files(a, request, t="error", reason=json.loads("[" * 90 + "]" * 90))),
    "no parts": _get(lambda a, request: a.parts(Kind.FILES, [])),
    "kind is a list": lambda a, fields: _files(a, fields["id"], t="done", kind=[]),
    "kind is missing": lambda a, fields: _files(a, fields["id"], t="done"),
    "no json": lambda a, fields: a.parts(Kind.FILES, [b"\xff", b""]),
    "foreign": _foreign,
}
