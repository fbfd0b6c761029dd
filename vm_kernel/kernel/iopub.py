"""The way out for everything on iopub: in order, with bounded memory, and nothing lost without a word.

ZeroMQ keeps a queue for each client and, left alone, drops silently what does not fit. Here it refuses instead
(XPUB_NODROP): the message waits, and while one waits the loop does not read the guest's stream, so that the guest
waits as well. ZeroMQ counts messages, not bytes; so the large ones that clients have not taken yet are counted here.

One client that does not read must not hold up the others for ever. When nothing has moved for ``stall_s`` seconds,
that client is cut off until it reads again, and what it has missed is announced.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import zmq

#: messages that ZeroMQ keeps for one client
QUEUED_MESSAGES = 1000
#: parts of so many bytes or more are handed to ZeroMQ without a copy, and messages of so many are counted until every
#: client has taken them
LARGE = 64 * 1024
#: bytes of memory that ZeroMQ takes for a part besides its own
_PART_COST = 64
#: bytes of such messages that may be on their way; a single message may be larger
MAX_HELD = 64 * 1024 * 1024
#: one message out of so many is tracked although it is small, to see whether clients take anything
TRACK_EVERY = 50
#: seconds without any progress after which a client is cut off; the pool service knows the configured value
STALL_S = 30.0
#: milliseconds between two attempts, the first and the longest: ZeroMQ does not tell when there is room again
RETRY_MS = (1.0, 20.0)


class _Held:
    """Parts that ZeroMQ has and that not all clients have taken."""

    __slots__ = ("size", "trackers")

    def __init__(self) -> None:
        self.size = 0
        self.trackers: list[zmq.MessageTracker] = []

    @property
    def taken(self) -> bool:
        return all(tracker.done for tracker in self.trackers)


class Iopub:
    """The queue in front of the XPUB socket. The outlet fills it; the loop calls flush() every turn."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self.stall_s = STALL_S
        #: called with a sentence for clients when output has been left out
        self.announce: Callable[[str], None] = lambda text: None
        self._waiting: deque[list[bytes]] = deque()
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._untracked = 0
        self._pause_ms = RETRY_MS[0]
        self._retry_at = 0.0
        #: since when nothing moves because a client's queue is full, and because too many bytes are held
        self._full_since: float | None = None
        self._heavy_since: float | None = None
        #: since a client was cut off: what it still had to take then, and messages sent without it
        self._cut: _Held | None = None
        self._missed = 0
        #: large messages that no client gets, because one has not taken MAX_HELD
        self._dropped = 0

    @property
    def has_room(self) -> bool:
        """False while clients lag behind: take nothing more from the guest."""
        return not self._waiting

    @property
    def queued(self) -> int:
        """Messages that wait for a client."""
        return len(self._waiting)

    def send(self, frames: list[bytes]) -> None:
        """Send one message, behind those that wait."""
        self._waiting.append(frames)
        if len(self._waiting) == 1:
            self.flush()

    def flush(self) -> None:
        """Send what clients have room for; cut off the one that blocks the way for too long."""
        self._settle()
        while self._waiting:
            fits = self._fits(self._waiting[0])
            if fits and self._hand_over(self._waiting[0]):
                self._full_since, self._pause_ms = None, RETRY_MS[0]
            elif self._still_for_s(fits) < self.stall_s:
                self._retry_at = time.monotonic() + self._pause_ms / 1000
                self._pause_ms = min(2 * self._pause_ms, RETRY_MS[1])
                return
            elif fits:
                self._cut_off(self._waiting[0])
            else:
                self._dropped += 1
            self._waiting.popleft()
            self._missed += self._cut is not None

    def next_try_in_s(self) -> float | None:
        """Seconds until flush() is to be called even if nothing happens; None: no need."""
        if self._waiting:
            return max(0.0, self._retry_at - time.monotonic())
        return 0.1 if self._cut is not None or self._dropped else None

    def finish(self, within_s: float) -> None:
        """The session ends: hand over what waits as far as clients take it within that time."""
        deadline = time.monotonic() + within_s
        while self._waiting and time.monotonic() < deadline:
            time.sleep(self.next_try_in_s() or 0.0)
            self.flush()

    # ---- one message

    def _fits(self, frames: list[bytes]) -> bool:
        size = _counted(frames)
        if size == 0 or self._held_bytes + size <= MAX_HELD:
            return True
        # a client that was cut off keeps what it had, while others have taken what came later
        count = len(self._held)
        self._held = deque(held for held in self._held if not held.taken)
        self._held_bytes = sum(held.size for held in self._held)
        if len(self._held) < count:
            self._moved()
        return self._held_bytes == 0 or self._held_bytes + size <= MAX_HELD

    def _still_for_s(self, fits: bool) -> float:
        """Seconds for which a message has now been waiting for a queue with room, or for held bytes to go."""
        now = time.monotonic()
        if fits:
            self._full_since = self._full_since or now
            return now - self._full_since
        self._heavy_since = self._heavy_since or now
        return now - self._heavy_since

    def _hand_over(self, frames: list[bytes]) -> bool:
        """Give the message to ZeroMQ. False, with nothing done, if a client's queue is full."""
        held = _Held()
        self._untracked += 1
        held.size = _counted(frames)
        tracked = self._untracked >= TRACK_EVERY or held.size > 0
        last = len(frames) - 1
        for number, part in enumerate(frames):
            flags = zmq.NOBLOCK | (zmq.SNDMORE if number < last else 0)
            large = len(part) >= LARGE
            try:
                if large or (tracked and number == last):
                    frame = zmq.Frame(part, track=True, copy=False, copy_threshold=0)
                    self._socket.send(frame, flags, copy=False)
                    held.trackers.append(frame.tracker)
                else:
                    self._socket.send(part, flags)
            except zmq.Again:
                return False
        if held.trackers:
            self._untracked = 0
            self._held.append(held)
            self._held_bytes += held.size
        return True

    def _settle(self) -> None:
        """Forget what has been taken."""
        while self._held and self._held[0].taken:
            self._held_bytes -= self._held.popleft().size
            self._moved()
        if self._cut is not None and self._cut.taken:
            missed, self._cut, self._missed = self._missed, None, 0
            self.announce(
                f"A client of this kernel took no output for {self.stall_s:g} s (PoolConfig.output_stall_s). "
                f"It was cut off until it read again; up to {missed} messages did not reach it."
            )

    def _moved(self) -> None:
        self._full_since = self._heavy_since = None
        self._pause_ms = RETRY_MS[0]
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.announce(
                f"{dropped} messages of {LARGE // 1024} KiB or more were left out: a client of this kernel had not "
                f"taken {MAX_HELD >> 20} MiB of output for {self.stall_s:g} s (PoolConfig.output_stall_s)."
            )

    def _cut_off(self, frames: list[bytes]) -> None:
        """Go on without the client that does not read."""
        before = self._held[-1] if self._held else _Held()
        # Sent this way, the message is lost to clients whose queues are full; and ZeroMQ passes over these, also in
        # what follows, until they read again.
        self._socket.setsockopt(zmq.XPUB_NODROP, 0)
        self._hand_over(frames)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        if self._cut is None:
            self._cut = before
        self._full_since = None


def _counted(frames: list[bytes]) -> int:
    """The bytes of a message as far as they count: of a small one none do, their number is bounded."""
    size = sum(map(len, frames)) + _PART_COST * len(frames)
    return size if size >= LARGE else 0
