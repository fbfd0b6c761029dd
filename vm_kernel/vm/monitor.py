"""Talking to QEMU itself, through libvirt's monitor connection: save device state, load it.

Device state is saved to a file and loaded through a pipe. QEMU's ``exec:`` is forbidden by libvirt's seccomp filter,
and ``fd:`` with a plain file is deprecated since QEMU 9.1; a pipe is right in every version, so ``file:``, which
only newer ones have, is not needed. RAM does not travel: it stays where it is.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from vm_kernel.errors import VMError

_POLL_S = 0.002


class Monitor:
    """QMP of one domain. Blocking. Raises VMError; the caller knows whether a template or a clone failed."""

    def __init__(self, domain: libvirt.virDomain) -> None:
        self._domain = domain

    def command(self, name: str, arguments: dict[str, Any] | None = None, files: Sequence[int] = ()) -> Any:
        """Run one QMP command and return what it returns. ``files`` are passed along with it."""
        request: dict[str, Any] = {"execute": name}
        if arguments is not None:
            request["arguments"] = arguments
        try:
            answer, _ = libvirt_qemu.qemuMonitorCommandWithFiles(self._domain, json.dumps(request), list(files), 0)
        except libvirt.libvirtError as error:
            raise VMError(f"QEMU does not answer to {name}: {error}") from error
        reply = json.loads(answer)
        if "error" in reply:
            raise VMError(f"QEMU refused {name}: {reply['error'].get('desc', reply['error'])}")
        return reply["return"]

    def load_state(self, state: bytes, timeout_s: float) -> None:
        """Load device state into a QEMU that waits in ``-incoming defer``. It is paused afterwards."""
        reader, writer = os.pipe()
        try:
            try:
                self.command("getfd", {"fdname": "state"}, [reader])
            finally:
                os.close(reader)
            self.command("migrate-incoming", {"uri": "fd:state"})
            _write_all(writer, state, timeout_s)
        finally:
            os.close(writer)
        self._wait_until_loaded(timeout_s)

    def save_devices(self, target: Path) -> None:
        """State of the paused VM's devices without its RAM, to a new file. It can be resumed afterwards.

        The command was made for Xen, which keeps the RAM itself, but QEMU has it everywhere. With ``live``, QEMU would
        give up the disk of a VM that is paused already. Not ``migrate``: from QEMU 8.0 on it crashes without a section
        about the configuration, and with one its stream is not of the kind that this command writes.
        """
        self.command("xen-save-devices-state", {"filename": str(target), "live": False})

    def _wait_until_loaded(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (seen := self.command("query-status").get("status")) != "paused":
            if seen != "inmigrate":
                raise VMError(f"QEMU's state is {seen!r} and not 'paused'")
            if time.monotonic() > deadline:
                raise VMError(f"QEMU's state is still {seen!r} after {timeout_s:.0f} s")
            time.sleep(_POLL_S)


def _ready(fd: int, event: int, deadline: float) -> bool:
    # not select(), which knows no descriptors above 1023
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(1000 * max(0.0, deadline - time.monotonic())))


def _write_all(writer: int, state: bytes, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    os.set_blocking(writer, False)
    rest = memoryview(state)
    while rest:
        if not _ready(writer, select.POLLOUT, deadline):
            raise VMError(f"QEMU did not load its state within {timeout_s:.0f} s")
        try:
            rest = rest[os.write(writer, rest) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            raise VMError("QEMU stopped reading its state") from None
