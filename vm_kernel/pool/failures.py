"""What went wrong in one profile: how often, why, and when the next try is due. It tries nothing itself."""

from __future__ import annotations

import time

from vm_kernel.errors import CloneError, GoldenError, GuestProtocolError, HostError, ImageError, VMKernelError

#: failures in a row after which a profile is called broken and those who wait are told so
MAX_FAILURES = 3
#: the shortest and the longest pause between two tries, in seconds
MIN_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0

_CAUSES: dict[type[VMKernelError], str] = {
    ImageError: "image",
    HostError: "host",
    GoldenError: "golden",
    CloneError: "clone",
    GuestProtocolError: "protocol",
}


class Failures:
    """The failures of one profile. ``by_cause`` counts since the service started; the names are few and stable.

    image, host, golden, clone, protocol: making a VM failed (the errors of that name). health: a warm VM did not
    answer. ended: a VM that nobody used ended by itself. rotation: a new golden snapshot could not be made.
    """

    def __init__(self) -> None:
        self.by_cause: dict[str, int] = {}
        self.in_a_row = 0
        self._retry_at = 0.0

    @property
    def total(self) -> int:
        """All of them, since the service started."""
        return sum(self.by_cause.values())

    @property
    def repeated(self) -> bool:
        """True if it fails again and again."""
        return self.in_a_row >= MAX_FAILURES

    @property
    def pause_s(self) -> float:
        """Seconds until the next try is due; 0 if it is."""
        return max(0.0, self._retry_at - time.monotonic())

    def count(self, cause: str) -> None:
        """Count one that says nothing about the next try."""
        self.by_cause[cause] = self.by_cause.get(cause, 0) + 1

    def failed(self, error: Exception) -> float:
        """Count a failed try. Returns the pause until the next one, in seconds: each time twice as long."""
        self.count(cause_of(error))
        self.in_a_row += 1
        pause = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2.0 ** min(self.in_a_row - 1, 20))
        self._retry_at = time.monotonic() + pause
        return pause

    def retry_now(self) -> None:
        """Somebody waits for the next try."""
        self._retry_at = 0.0

    def succeeded(self) -> None:
        """A try went well: the next failure is the first again."""
        self.in_a_row = 0
        self._retry_at = 0.0


def cause_of(error: Exception) -> str:
    """The name under which an error is counted."""
    return next((cause for kind, cause in _CAUSES.items() if isinstance(error, kind)), "other")


def as_ours(error: Exception, what: str) -> VMKernelError:
    """The error itself if it is one of ours, else one that says ``what`` failed."""
    if isinstance(error, VMKernelError):
        return error
    return VMKernelError(f"{what}: {type(error).__name__}: {error}", "The pool service's log has the details.")
