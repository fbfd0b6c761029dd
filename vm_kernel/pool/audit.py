"""The audit log: who had which VM and what was done with it. One JSON object a line, one line an event.

Every event of a lease has its ``lease`` id, its ``vm``, ``profile``, ``kernel_id``, ``client_pid`` and ``uid``, so that
what belongs together can be found. Code is there as digest and length, unless ``audit_code`` asks for itself.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

#: seconds between two complaints in the service's log about an audit log that cannot be written
COMPLAIN_EVERY_S = 60.0


class AuditLog:
    """Appends to ``path``; ``path.1`` … ``path.N`` are older. It is for one process.

    An event that cannot be written, because the disk is full, say, is counted in ``failures`` and lost: sessions go on.
    """

    def __init__(self, path: Path, max_bytes: int, files: int, enabled: bool = True) -> None:
        self.enabled = enabled
        self.failures = 0
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._fd = -1
        self._complained_at = -COMPLAIN_EVERY_S

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Never raises."""
        if not self.enabled:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event} | fields, separators=(",", ":")).encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            self.close()
            self._failed(error)

    def close(self) -> None:
        """Close the file; the next event opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    def _append(self, line: bytes) -> None:
        size = self._open()
        if size and size + len(line) > self._max_bytes:
            self._rotate()
            size = self._open()
        written = os.write(self._fd, line)
        if written < len(line):
            # the disk is full: half a line would spoil the next one, too
            os.ftruncate(self._fd, size)
            raise OSError(f"{written} of {len(line)} bytes were written")

    def _open(self) -> int:
        """Open the file unless it is, and is still the one of that name. Returns its size."""
        if self._fd >= 0:
            found = os.fstat(self._fd)
            with suppress(FileNotFoundError):
                if os.path.samestat(found, os.lstat(self._path)):
                    return found.st_size
            self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)
        os.fchmod(self._fd, 0o600)
        return os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            with suppress(FileNotFoundError):
                self._older(number).replace(self._older(number + 1))
        if self._files:
            self._path.replace(self._older(1))
        else:
            self._path.unlink()

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _failed(self, error: OSError) -> None:
        self.failures += 1
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_EVERY_S:
            self._complained_at = now
            structlog.get_logger().error("audit_failed", path=str(self._path), error=str(error), lost=self.failures)
