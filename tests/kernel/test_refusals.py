"""What is refused is logged on the kernel's stderr, and the log cannot be filled by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zmq
from jupyter_client.manager import AsyncKernelManager

from tests.conftest import eventually
from tests.kernel.session import Session
from vm_kernel.kernel.refusals import EACH, MAX_REASON, Refusals


def test_a_thousand_refusals_are_a_handful_of_short_lines(capsys: pytest.CaptureFixture[str]) -> None:
    refusals = Refusals("guest")
    for _ in range(1000):
        refusals.note("x" * 100_000, channel="iopub")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["count"] for line in lines] == [*range(1, EACH + 1), 16, 32, 64, 128, 256, 512]
    assert all(len(line["reason"]) == MAX_REASON for line in lines)
    assert (lines[0]["event"], lines[0]["channel"], lines[0]["level"]) == ("guest_message_refused", "iopub", "warning")


async def test_rubbish_on_every_channel_is_logged_and_the_kernel_lives_on(
    kernelspec: str, warm_pool: None, tmp_path: Path
) -> None:
    log = tmp_path / "stderr"
    manager = AsyncKernelManager(kernel_name=kernelspec)
    with log.open("wb") as stderr:
        await manager.start_kernel(stderr=stderr)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        session = Session(client)
        _send_rubbish(manager)
        await eventually(lambda: len(_events(log)) >= 3, 60.0, "a line for each of the three channels")
        assert {event["channel"] for event in _events(log)} == {"shell", "control", "stdin"}
        assert {event["reason"] for event in _events(log)} == {"no delimiter"}
        cell = await session.run("print('alive')")
        assert cell.stream() == "alive\n"
        assert await client._async_is_alive()
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)


def _send_rubbish(manager: AsyncKernelManager) -> None:
    """To every port. On iopub only a subscriber can send, and only to a socket that listens for subscriptions."""
    context = zmq.Context.instance()
    for kind, port in (
        (zmq.DEALER, manager.shell_port),
        (zmq.DEALER, manager.control_port),
        (zmq.DEALER, manager.stdin_port),
        (zmq.XSUB, manager.iopub_port),
        (zmq.DEALER, manager.hb_port),
    ):
        socket = context.socket(kind)
        socket.connect(f"tcp://127.0.0.1:{port}")
        socket.send_multipart([b"\x07rubbish", bytes(100_000)])
        socket.close(linger=2000)


def _events(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
