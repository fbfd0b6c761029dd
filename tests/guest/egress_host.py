"""The host's end of the egress proxy over any socket, as the kernel process has it: a loop that feeds and pumps."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import suppress
from typing import Any

from guest_agent.frames import Kind
from tests.conftest import wait_until
from vm_kernel.errors import GuestProtocolError
from vm_kernel.guest.channel import FrameStream
from vm_kernel.guest.egress import Budget, Egress

#: what a profile that permits something comes to, as it travels in VMFacts
SETTINGS: dict[str, Any] = {
    "allow": ["localhost"],
    "allow_private": ["127.0.0.0/8", "::1/128"],
    "max_connections": 64,
    "max_mib": 0,
    "idle_s": 300.0,
}


class EgressHost:
    """A loop in a thread that owns the stream. ``with EgressHost(sock, ports=[…]) as host``."""

    def __init__(self, sock: socket.socket, *ports: int, **changes: Any) -> None:
        settings = SETTINGS | {"allow": [f"localhost:{port}" for port in ports]} | changes
        self.stream = FrameStream(sock)
        self.notes: list[dict[str, Any]] = []
        self.budget = Budget(settings["max_mib"])
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self.egress = Egress(settings if settings["allow"] else None, "mine", self.wake, self._note, self.budget)
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._over = False

    def __enter__(self) -> EgressHost:
        self._thread.start()
        self.egress.begin()
        return self

    def __exit__(self, *error: object) -> None:
        self._over = True
        self.wake()
        self._thread.join()
        self.egress.close()
        self.stream.close()

    def wake(self) -> None:
        with suppress(BlockingIOError):
            os.write(self._writing, b"x")

    def last_note(self, verdict: str) -> dict[str, Any]:
        """The last note, when it is one of that verdict: the guest may hear of something before it is noted."""
        wait_until(lambda: self.verdicts()[-1:] == [verdict], 60.0, f"a note {verdict!r}")
        return self.notes[-1]

    def verdicts(self) -> list[str]:
        return [note["verdict"] for note in self.notes]

    def _note(self, fields: dict[str, Any]) -> bool:
        self.notes.append(fields)
        return True

    def _loop(self) -> None:
        with suppress(EOFError, GuestProtocolError):
            while not self._over:
                self.egress.pump(self.stream)
                writing = [self.stream.fileno()] if self.stream.wants_write else []
                readable, _, _ = select.select([self.stream.fileno(), self._reading], writing, [])
                if self._reading in readable:
                    os.read(self._reading, 4096)
                self.stream.flush()
                for kind, body in self.stream.receive():
                    if kind is Kind.PROXY:
                        self.egress.feed(body)
