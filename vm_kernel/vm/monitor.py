"""Talking to QEMU itself, through libvirt's monitor connection: save device state, load it.

Device state travels through a pipe. QEMU's ``exec:`` is forbidden by libvirt's seccomp filter, and ``fd:`` with a plain
file is deprecated since QEMU 9.1; a pipe works in every version. RAM does not travel: it stays in the shared image.
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

#: Device state is some 400 kB; a template that writes more than this is not what we think it is.
MAX_STATE_BYTES = 64 << 20
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

    def keep_ram_in_place(self) -> None:
        """Leave shared RAM out of the migration stream. Before saving and before loading."""
        wanted = [{"capability": "x-ignore-shared", "state": True}]
        self.command("migrate-set-capabilities", {"capabilities": wanted})

    def save_state(self, timeout_s: float) -> bytes:
        """Device state of the paused VM. It cannot be resumed afterwards."""
        self.keep_ram_in_place()
        reader, writer = os.pipe()
        try:
            try:
                self.command("getfd", {"fdname": "state"}, [writer])
            finally:
                os.close(writer)
            self.command("migrate", {"uri": "fd:state"})
            state = _read_all(reader, timeout_s)
        finally:
            os.close(reader)
        self._wait(lambda: self.command("query-migrate").get("status"), "completed", timeout_s)
        return state

    def load_state(self, state: bytes, timeout_s: float) -> None:
        """Load device state into a QEMU that waits in ``-incoming defer``. It is paused afterwards."""
        self.keep_ram_in_place()
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
        self._wait(lambda: self.command("query-status").get("status"), "paused", timeout_s, busy=("inmigrate",))

    def save_devices(self, target: Path) -> None:
        """State of the paused VM's devices without its RAM, to a new file. It can be resumed afterwards.

        The command was made for Xen, which keeps the RAM itself, but QEMU has it everywhere. With ``live``, QEMU would
        give up the disk of a VM that is paused already.
        """
        self.command("xen-save-devices-state", {"filename": str(target), "live": False})

    def _wait(self, status: Any, wanted: str, timeout_s: float, busy: Sequence[str] = ()) -> None:
        busy = busy or ("setup", "active", "device", "pre-switchover", "postcopy-active", "wait-unplug")
        deadline = time.monotonic() + timeout_s
        while (seen := status()) != wanted:
            if seen not in busy:
                raise VMError(f"QEMU's state is {seen!r} and not {wanted!r}")
            if time.monotonic() > deadline:
                raise VMError(f"QEMU's state is still {seen!r} after {timeout_s:.0f} s")
            time.sleep(_POLL_S)


def _ready(fd: int, event: int, deadline: float) -> bool:
    # not select(), which knows no descriptors above 1023
    poller = select.poll()
    poller.register(fd, event)
    return bool(poller.poll(1000 * max(0.0, deadline - time.monotonic())))


def _read_all(reader: int, timeout_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s
    chunks: list[bytes] = []
    size = 0
    while size <= MAX_STATE_BYTES:
        if not _ready(reader, select.POLLIN, deadline):
            raise VMError(f"QEMU did not finish saving its state within {timeout_s:.0f} s")
        chunk = os.read(reader, 1 << 20)
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
    raise VMError(f"QEMU saves more than {MAX_STATE_BYTES} bytes of device state: its RAM is not left in place")


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
