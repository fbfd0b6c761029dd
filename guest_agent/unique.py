"""Makes a clone unlike its siblings, before any code of a user runs.

All clones of a golden snapshot wake up with the same memory: the same random pool, the same clock, the same name.
The host sends what makes the difference. The part that concerns the kernel's own process is in ``renew.py``.
"""

from __future__ import annotations

import ctypes
import fcntl
import struct
import time
from pathlib import Path
from typing import NamedTuple

from guest_agent.frames import FrameError
from guest_agent.init import bind_over

# linux/random.h
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Identity(NamedTuple):
    """What the host gives to one clone."""

    entropy: bytes
    time_ns: int
    hostname: str
    machine_id: str
    boot_id: str
    session: str
    #: the VM goes on from a checkpoint for the session that saved it: what Python has seeded and named stays
    same_session: bool = False

    @classmethod
    def from_message(cls, fields: dict[str, object]) -> Identity:
        """Read a UNIQUE message. Raises FrameError if something is missing or of the wrong type."""
        try:
            return cls(
                entropy=bytes.fromhex(str(fields["entropy"])),
                time_ns=int(str(fields["time_ns"])),
                same_session=fields.get("same_session") is True,
                **{name: str(fields[name]) for name in ("hostname", "machine_id", "boot_id", "session")},
            )
        except (KeyError, ValueError) as error:
            raise FrameError(f"a UNIQUE message without {error}") from None


def apply(identity: Identity) -> None:
    """Reseed the kernel's random numbers, set the clock and the names. Needs root in the guest."""
    _reseed(identity.entropy)
    set_clock(identity.time_ns)
    _set_names(identity)


def set_clock(time_ns: int) -> None:
    """Set the wall clock, in nanoseconds since 1970."""
    time.clock_settime_ns(time.CLOCK_REALTIME, time_ns)


def _reseed(entropy: bytes) -> None:
    """Credit ``entropy`` to the kernel's pool and make the generator start afresh from it at once."""
    with Path("/dev/urandom").open("wb", buffering=0) as device:
        request = struct.pack("ii", 8 * len(entropy), len(entropy)) + entropy
        fcntl.ioctl(device, _RNDADDENTROPY, request)
        fcntl.ioctl(device, _RNDRESEEDCRNG)


def _set_names(identity: Identity) -> None:
    name = identity.hostname.encode()
    ctypes.CDLL(None).sethostname(name, len(name))
    Path("/etc/hostname").write_text(identity.hostname + "\n")
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {identity.hostname}\n::1 localhost\n")
    Path("/etc/machine-id").write_text(identity.machine_id + "\n")
    # the kernel makes its boot id once, and a clone inherits it: a file of ours takes its place
    boot_id = Path("/run/boot_id")
    boot_id.write_text(identity.boot_id + "\n")
    if not boot_id.samefile(_BOOT_ID):
        bind_over(boot_id, _BOOT_ID)
