"""Why a VM has ended by itself: what QEMU said of its guest's shutdown, and how the process ended.

QEMU tells the reason of a shutdown in an event of its monitor (SHUTDOWN, see QEMU's QMP reference); libvirt passes on
that there was one, and then kills the process. So the event is the only trace of a guest that panicked.
"""

from __future__ import annotations

import json
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import libvirt

#: QEMU's reasons (qapi/run-state.json, ShutdownCause) in words. A guest of ours reboots when its kernel has panicked,
#: because it is told to (panic=-1); its user may not, unless he has become root there.
_REASONS = {
    "guest-reset": "the Linux kernel in it has panicked, or restarted",
    "guest-panic": "the Linux kernel in it has panicked",
    "guest-shutdown": "its guest has switched itself off",
    "host-signal": "its QEMU process was told to end by a signal",
}
#: signals that end a QEMU, and what they come from (see ``bounds``)
_SIGNALS = {
    signal.SIGKILL: ", by hand or because the host ran out of memory",
    signal.SIGXFSZ: ": its guest made it write more than it may",
    signal.SIGABRT: ": it gave up, perhaps because its guest made it use more memory than it may",
}
#: reasons that are remembered for VMs that nobody has asked about
_MAX_REASONS = 1024


class GuestShutdowns:
    """Remembers, by domain name, the reason that QEMU gives for a shutdown. Filled in libvirt's event thread."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        import libvirt_qemu

        self._reasons: dict[str, str] = {}
        self._guard = threading.Lock()
        self._connection = connection
        self._callback = libvirt_qemu.qemuMonitorEventRegister(connection, None, "SHUTDOWN", self._heard, None)

    def pop(self, name: str) -> str | None:
        """QEMU's reason; None if the guest has not shut down."""
        with self._guard:
            return self._reasons.pop(name, None)

    def close(self) -> None:
        """Listen no more; without it libvirt would keep the connection."""
        import libvirt
        import libvirt_qemu

        with suppress(libvirt.libvirtError):
            libvirt_qemu.qemuMonitorEventDeregister(self._connection, self._callback)

    def _heard(self, _connection: Any, domain: Any, _event: str, _s: int, _us: int, details: str, _opaque: Any) -> None:
        with suppress(ValueError, KeyError, TypeError), self._guard:
            # the first: the signal by which libvirt then ends QEMU is reported, too
            self._reasons.setdefault(domain.name(), str(json.loads(details)["reason"]))
            while len(self._reasons) > _MAX_REASONS:
                del self._reasons[next(iter(self._reasons))]


def in_words(reason: str | None, exit_status: int | None) -> str:
    """The cause, to go behind "The virtual machine has ended: ". ``exit_status``: negative for a signal."""
    if reason in _REASONS:
        return _REASONS[reason]
    if exit_status is None:
        return "its QEMU process has ended"
    if exit_status >= 0:
        return f"its QEMU process has ended with status {exit_status}"
    with suppress(ValueError):
        number = signal.Signals(-exit_status)
        return f"its QEMU process was killed by {number.name}{_SIGNALS.get(number, '')}"
    return f"its QEMU process was killed by signal {-exit_status}"
