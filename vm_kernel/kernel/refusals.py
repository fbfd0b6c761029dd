"""Messages that are not handled, for the log: malformed ones, unknown types, wrong signatures, a guest's forgeries.

The log is the kernel process's stderr, which Jupyter shows beside its own. Whoever sends rubbish must not fill it: the
first refusals are logged one by one, later ones only when their number has doubled.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

#: refusals that are logged one by one
EACH = 8
#: characters of a reason; parts of it come from whoever sent the message
MAX_REASON = 200


class Refusals:
    """Counts what one side had refused, and logs it. ``side``: ``client`` or ``guest``."""

    def __init__(self, side: str) -> None:
        self.count = 0
        self._side = side

    def note(self, reason: str, **fields: Any) -> None:
        """Called for each message that is not handled; ``fields`` go into the log with it."""
        self.count += 1
        if self.count <= EACH or self.count & (self.count - 1) == 0:
            event = f"{self._side}_message_refused"
            with contextlib.suppress(OSError):  # nobody reads stderr any more
                _logger().warning(event, reason=reason[:MAX_REASON], count=self.count, **fields)


def _logger() -> Any:
    """Imported when the first line is due: a kernel that has nothing to complain of starts without."""
    import structlog

    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
    return structlog.get_logger()
