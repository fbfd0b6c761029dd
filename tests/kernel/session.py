"""A client as the tests of this folder see it: run a cell, get everything that came of it, in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager, KernelManager

from vm_kernel.pool.client import PoolConnection

TIMEOUT_S = 120.0


class Cell(NamedTuple):
    """What one request caused: its reply, and the iopub messages that name it as their parent."""

    reply: dict[str, Any]
    iopub: list[dict[str, Any]]

    @property
    def status(self) -> str:
        return str(self.reply["content"]["status"])

    @property
    def number(self) -> int:
        return int(self.reply["content"]["execution_count"])

    @property
    def types(self) -> list[str]:
        """Message types on iopub; a status by its state."""
        return [m["content"].get("execution_state", m["msg_type"]) for m in self.iopub]

    def of(self, msg_type: str) -> list[dict[str, Any]]:
        """Contents of the iopub messages of that type."""
        return [m["content"] for m in self.iopub if m["msg_type"] == msg_type]

    def stream(self, name: str = "stdout") -> str:
        return "".join(c["text"] for c in self.of("stream") if c["name"] == name)

    @property
    def value(self) -> str:
        """Text of the result."""
        return str(self.of("execute_result")[0]["data"]["text/plain"])


class Session:
    """One client. Messages that nobody has asked for yet wait in ``iopub`` and ``replies`` by parent."""

    def __init__(self, client: AsyncKernelClient) -> None:
        self.client = client
        self.iopub: dict[str, list[dict[str, Any]]] = {}
        self.replies: dict[str, dict[str, Any]] = {}

    async def run(self, code: str, timeout_s: float = TIMEOUT_S, **options: Any) -> Cell:
        """Run a cell to its end."""
        return await self.finish(self.client.execute(code, **options), timeout_s)

    async def ask(self, msg_type: str, content: dict[str, Any], channel: str = "shell", **header: Any) -> Cell:
        """Any request, to its end."""
        return await self.finish(self.send(msg_type, content, channel, **header))

    def send(
        self, msg_type: str, content: dict[str, Any], channel: str = "shell", buffers: Any = None, **header: Any
    ) -> str:
        """Send a message; returns its id."""
        message = self.client.session.msg(msg_type, content)
        message["header"].update(header)
        message["buffers"] = buffers or []
        getattr(self.client, f"{channel}_channel").send(message)
        return str(message["header"]["msg_id"])

    async def finish(self, msg_id: str, timeout_s: float = TIMEOUT_S) -> Cell:
        """Wait for the reply and the 'idle' of a request that has been sent."""
        await self.until(lambda: msg_id in self.replies and self._is_idle(msg_id), f"end of {msg_id}", timeout_s)
        return Cell(self.replies.pop(msg_id), self.iopub[msg_id])

    async def until(self, true: Any, what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Receive until ``true()``."""
        deadline = time.monotonic() + timeout_s
        while not true():
            if not await self._receive():
                assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}; {self._seen()}"
                await asyncio.sleep(0.005)

    async def until_output(self, msg_id: str, text: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a running cell has printed something."""
        await self.until(lambda: text in self.printed(msg_id), f"output {text!r}", timeout_s)

    def printed(self, msg_id: str) -> str:
        """What a cell has printed so far, on both streams."""
        messages = self.iopub.get(msg_id, [])
        return "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")

    async def drain(self, seconds: float) -> None:
        """Receive what comes within that time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await self._receive()
            await asyncio.sleep(0.005)

    async def input_request(self, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """The next question on stdin."""
        message: dict[str, Any] = await self.client.get_stdin_msg(timeout=timeout_s)
        return message

    def _seen(self) -> str:
        """What has been received of the last request, in short."""
        last = next(reversed(self.iopub.values()), [])
        return str([(m["msg_type"], str(m["content"])[:80]) for m in last[-5:]])

    def _is_idle(self, msg_id: str) -> bool:
        return any(m["content"].get("execution_state") == "idle" for m in self.iopub.get(msg_id, []))

    async def _receive(self) -> bool:
        got = False
        for channel in (self.client.iopub_channel, self.client.shell_channel, self.client.control_channel):
            while await channel.msg_ready():
                message = await channel.get_msg(timeout=1)
                got = True
                parent = message["parent_header"].get("msg_id", "")
                if channel is self.client.iopub_channel:
                    self.iopub.setdefault(parent, []).append(message)
                else:
                    assert parent not in self.replies, "a second reply"
                    self.replies[parent] = message
        return got


def pid_of(manager: AsyncKernelManager) -> int:
    """Process id of the kernel process."""
    return int(manager.provisioner.pid)  # type: ignore[union-attr]


def vm_of(manager: AsyncKernelManager) -> int:
    """Process id of a kernel's VM."""
    connection = PoolConnection.open()
    try:
        vms = connection.status()["vms"]
    finally:
        connection.close()
    return next(int(vm["pid"]) for vm in vms if (vm["lease"] or {}).get("pid") == pid_of(manager))


async def has_ended(manager: AsyncKernelManager, timeout_s: float = TIMEOUT_S) -> None:
    """Wait for the end of the kernel process."""
    deadline = time.monotonic() + timeout_s
    while await manager.is_alive():
        assert time.monotonic() < deadline, f"the kernel process lives on after {timeout_s} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def connected(manager: KernelManager) -> AsyncIterator[Session]:
    """A further client of a kernel: as another browser would be, not a second view on the manager's session."""
    client = AsyncKernelClient()
    client.load_connection_info(manager.get_connection_info(session=False))
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=TIMEOUT_S)
        yield Session(client)
    finally:
        client.stop_channels()


@asynccontextmanager
async def unready_kernel(kernel_name: str, **arguments: Any) -> AsyncIterator[tuple[AsyncKernelManager, Session]]:
    """A kernel that has been started and is not waited for: it may have no VM."""
    manager = AsyncKernelManager(kernel_name=kernel_name, **arguments)
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        yield manager, Session(client)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=not await manager.is_alive())
