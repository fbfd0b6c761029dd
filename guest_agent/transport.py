"""How the host reaches the agent: one interface, one class a transport. Each accepts one connection, ever."""

from __future__ import annotations

import os
import select
import socket
import time
from pathlib import Path
from typing import Protocol

VIRTIO_PORT_NAME = "org.vmsandbox.agent"
VSOCK_PORT = 5252
#: how often the agent looks whether the host has opened the virtio port: poll(2) reports nothing but POLLHUP until
#: then, and at once, so there is nothing to sleep on
_VIRTIO_LOOK_S = 0.002


class Transport(Protocol):
    """Where the host connects to. The agent makes one before the template is saved, with nobody connected."""

    def accept(self) -> int:
        """Wait for the host; a non-blocking descriptor of the only connection there will be in this VM."""

    def expect_copy(self) -> None:
        """A checkpoint is about to be saved: prepare for what accept() has to do in a VM made from it."""

    def no_copy(self) -> None:
        """This VM is not one made from the checkpoint: undo expect_copy()."""


class VirtioSerial:
    """A named virtio-serial port. Its host end is a unix socket that QEMU listens on."""

    def __init__(self, name: str = VIRTIO_PORT_NAME) -> None:
        self._fd = os.open(_virtio_port(name), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def accept(self) -> int:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        while any(events & select.POLLHUP for _, events in poller.poll(0)):
            time.sleep(_VIRTIO_LOOK_S)
        return self._fd

    def expect_copy(self) -> None:
        """Nothing: the port is the same in the copy."""

    def no_copy(self) -> None:
        """Nothing."""


class Vsock:
    """A listening AF_VSOCK socket. It is closed when the host has connected: whoever comes later is refused."""

    def __init__(self, port: int = VSOCK_PORT) -> None:
        self._port = port
        self.expect_copy()

    def expect_copy(self) -> None:
        """Listen again: a restored VM loses its connections and keeps its listeners."""
        self._listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        self._listener.bind((socket.VMADDR_CID_ANY, self._port))
        self._listener.listen(1)

    def no_copy(self) -> None:
        """Whoever has connected meanwhile is refused."""
        self._listener.close()

    def accept(self) -> int:
        connection, _ = self._listener.accept()
        self._listener.close()
        connection.setblocking(False)
        return connection.detach()


class Local:
    """A descriptor that the process was started with. For work on the agent without a VM."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def accept(self) -> int:
        os.set_blocking(self._fd, False)
        return self._fd

    def expect_copy(self) -> None:
        """Nothing: there is no VM to be copied."""

    def no_copy(self) -> None:
        """Nothing."""


def from_command_line(words: list[str]) -> Transport:
    """The transport that the kernel's command line names: ``vm_kernel.transport=virtio-serial`` or ``vsock``."""
    for word in words:
        name, _, value = word.partition("=")
        if name == "vm_kernel.transport":
            if value == "vsock":
                return Vsock()
            if value == "virtio-serial":
                return VirtioSerial()
            raise ValueError(f"unknown transport {value!r} on the kernel's command line")
    raise ValueError("no vm_kernel.transport= on the kernel's command line")


def _virtio_port(name: str, wait_s: float = 10.0) -> Path:
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        for folder in Path("/sys/class/virtio-ports").glob("vport*"):
            if (folder / "name").read_text().strip() == name:
                return Path("/dev") / folder.name
        time.sleep(0.02)
    raise TimeoutError(f"no virtio-serial port named {name}")
