"""A guest agent written for the attack. Tests put it in the place of ``guest_agent.agent`` in a real VM.

The honest agent is beside it as ``guest_agent.honest_agent``, and what it sends as ``guest_agent.attacks`` (it is
``tests/hostile_guest/attacks.py``). It behaves until a cell names an attack.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import guest_agent.attacks as attacks  # type: ignore[import-not-found]
import guest_agent.honest_agent as honest  # type: ignore[import-not-found]

from guest_agent.frames import HEADER, MAX_PAYLOAD, MORE, Kind


class HostileAgent(honest.Agent):  # type: ignore[misc]
    """Sends its attack before it runs the cell that names it. It answers one PING, before it is leased."""

    _answered = False
    #: what becomes of the next FREEZE
    _freezing = b""

    def _health(self, fields: dict[str, Any]) -> dict[str, Any]:
        while self._answered:
            time.sleep(60)
        self._answered = True
        health: dict[str, Any] = super()._health(fields)
        return health

    def _to_kernel(self, kind: Kind, parts: list[bytes]) -> None:
        if b"attack:panic" in parts[4]:
            Path("/proc/sysrq-trigger").write_text("c")
        for name in (b"deaf", b"garbage", b"babble", b"leave", b"poison"):
            if b"freeze:" + name in parts[4]:
                self._freezing = name
        code = str(json.loads(bytes(parts[4])).get("code", ""))
        attack = (attacks.IGNORED | attacks.FATAL).get(code.strip("'").removeprefix("attack:"))
        if attack is not None:
            while self._stream.wants_write:
                self._stream.flush()
            attack.run(attacks.Attacker(lambda data: write(self._stream.fd, data), json.loads(bytes(parts[1]))))
        super()._to_kernel(kind, parts)

    def _obey(self, kind: Kind, fields: dict[str, Any]) -> None:
        if kind is Kind.UNIQUE and self._freezing == b"poison":
            # in a copy, whose host is the pool service
            while True:
                write(self._stream.fd, HEADER.pack(MAX_PAYLOAD, Kind.SHELL, MORE, 0) + bytes(MAX_PAYLOAD))
        if kind is Kind.FREEZE and self._freezing not in (b"", b"poison"):
            if self._freezing == b"leave":
                honest.init.power_off()
            if self._freezing == b"garbage":
                write(self._stream.fd, HEADER.pack(3, Kind.FROZEN, 0, 0) + b"[1]")
            if self._freezing == b"babble":
                write(self._stream.fd, (HEADER.pack(2, Kind.FROZEN, 0, 0) + b"{}") * 100)
            return
        super()._obey(kind, fields)


def write(fd: int, data: bytes) -> None:
    """All of it, although the descriptor does not block."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            time.sleep(0.01)


if __name__ == "__main__":
    honest.Agent = HostileAgent
    honest.main()
