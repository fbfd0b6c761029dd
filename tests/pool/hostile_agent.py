"""Guest agents written for the attack. Tests put one in the place of ``guest_agent.agent`` in a real VM.

The honest agent is beside it as ``guest_agent.honest_agent``. This one behaves until a cell names an attack.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import guest_agent.honest_agent as honest  # type: ignore[import-not-found]

from guest_agent.frames import HEADER, Kind

ATTACKS = {
    b"4GiB": HEADER.pack(0xFFFFFFFF, Kind.IOPUB, 0, 0) + b"x" * 65536,
    b"random": os.urandom(65536),
    b"unknown": HEADER.pack(4, 99, 0, 0) + b"abcd",
    b"parts": HEADER.pack(4, Kind.IOPUB, 0, 0) + b"\xff\xff\xff\xff",
    b"json": HEADER.pack(3, Kind.KERNEL_DIED, 0, 0) + b"[1]",
}


class HostileAgent(honest.Agent):  # type: ignore[misc]
    """Sends its attack instead of running the cell that names it. It answers one PING, before it is leased."""

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
        for name in (b"deaf", b"garbage", b"babble", b"leave"):
            if b"freeze:" + name in parts[4]:
                self._freezing = name
        for name, data in ATTACKS.items():
            if b"attack:" + name in parts[4]:
                write(self._stream.fd, data)
                return
        super()._to_kernel(kind, parts)

    def _obey(self, kind: Kind, fields: dict[str, Any]) -> None:
        if kind is Kind.FREEZE and self._freezing:
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
