"""Much output and large messages: all of it, in order, in bounded memory, whatever the pace of the client."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import zmq
from jupyter_client.manager import AsyncKernelManager

from tests.conftest import CONFIG, StartKernel, stop_service, write_config
from tests.kernel.session import Session
from vm_kernel.kernel.spec import install

MIB = 1024 * 1024
#: what the kernel process may need at its peak, in MiB. It needs some 30 of its own
PEAK_MIB = 420

#: lines that differ, so that a piece that is lost, doubled or moved shows
PRINT = """
import sys
block = ''.join(f'{{n:07}} {{"v" * 55}}\\n' for n in range(16384))
for n in range({mib}):
    sys.stdout.write(block)
"""
DISPLAYS = """
from IPython.display import publish_display_data
for n in range({count}):
    publish_display_data({{'text/plain': f'{{n:2000}}'}})
"""
#: more than all queues on the way hold, which takes a guest that is emulated half a minute
DISPLAYED = 3000
BLOCK = "".join(f"{n:07} {'v' * 55}\n" for n in range(16384))
assert len(BLOCK) == MIB


@pytest_asyncio.fixture
async def raw(kernel: tuple[AsyncKernelManager, Session]) -> AsyncIterator[tuple[AsyncKernelManager, Session, Any]]:
    """A kernel, a client, and a further subscriber of iopub whose pace the test decides."""
    manager, session = kernel
    subscriber = subscribe(manager)
    try:
        yield manager, session, subscriber
    finally:
        subscriber.context.destroy(linger=0)


def subscribe(manager: AsyncKernelManager) -> Any:
    """A subscriber with small queues, as one over a slow line has. Returns when it is subscribed."""
    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 4)
    socket.setsockopt(zmq.RCVBUF, 64 * 1024)
    socket.subscribe(b"")
    socket.connect(f"tcp://127.0.0.1:{manager.get_connection_info()['iopub_port']}")
    assert socket.poll(20000), "no welcome"
    socket.recv_multipart()
    return socket


def peak_mib(manager: AsyncKernelManager) -> int:
    """Peak resident memory of the kernel process."""
    pid = manager.provisioner.pid  # type: ignore[union-attr]
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) // 1024  # type: ignore[index]


class Reader:
    """Reads what a subscriber gets, in a thread of its own, at a pace of its own."""

    def __init__(self, session: Session, socket: Any) -> None:
        self._unpack = session.client.session.unpack
        self._socket = socket
        self.types: list[str] = []
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.errors = self.raised = ""
        self.texts: list[str] = []

    def read(self, msg_id: str, pause_s: float = 0.0, every: int = 1) -> None:
        """Up to the idle of that request."""
        while True:
            parent, kind = self._next()
            if parent != msg_id:
                continue
            self.types.append(kind)
            if kind == "idle":
                return
            if pause_s and len(self.types) % every == 0:
                time.sleep(pause_s)

    def read_until_told(self) -> None:
        """Up to an announcement."""
        while "PoolConfig.output_stall_s" not in self.errors:
            self._next()

    def _next(self) -> tuple[str, str]:
        """Take one message in; its parent and its type, a status by its state."""
        assert self._socket.poll(120000), f"nothing more after {self.bytes} bytes, {self.types[-3:]}"
        frames = self._socket.recv_multipart()
        at = frames.index(b"<IDS|MSG>")
        header, parent, _, content = map(self._unpack, frames[at + 2 : at + 6])
        if header["msg_type"] == "stream":
            self._stream(content)
        elif header["msg_type"] == "display_data":
            self.texts.append(content["data"]["text/plain"])
        elif header["msg_type"] == "error":
            self.raised = str(content)
        return parent.get("msg_id", ""), content.get("execution_state", header["msg_type"])

    def _stream(self, content: dict[str, Any]) -> None:
        if content["name"] == "stderr":
            self.errors += content["text"]
            return
        data = content["text"].encode()
        self.digest.update(data)
        self.bytes += len(data)


def expected(mib: int) -> str:
    digest = hashlib.sha256()
    for _ in range(mib):
        digest.update(BLOCK.encode())
    return digest.hexdigest()


def quiet(session: Session) -> None:
    """This client only sends: the other one reads what is published."""
    session.client.iopub_channel.stop()


async def read(session: Session, subscriber: Any, msg_id: str, **pace: Any) -> Reader:
    """All that a request causes, up to its idle."""
    reader = Reader(session, subscriber)
    await asyncio.to_thread(reader.read, msg_id, **pace)
    return reader


@pytest.mark.timeout(400)
async def test_200_mb_of_stdout_arrive_byte_for_byte(raw: tuple[AsyncKernelManager, Session, Any]) -> None:
    manager, session, subscriber = raw
    quiet(session)
    reader = await read(session, subscriber, session.client.execute(PRINT.format(mib=200)))
    assert (reader.bytes, reader.digest.hexdigest(), reader.errors) == (200 * MIB, expected(200), ""), reader.raised
    assert reader.types[:2] == ["busy", "execute_input"]
    assert set(reader.types[2:-1]) == {"stream"}
    assert peak_mib(manager) < PEAK_MIB


@pytest.mark.timeout(400)
async def test_a_client_that_does_not_read_for_a_while_and_then_slowly_gets_every_byte(
    raw: tuple[AsyncKernelManager, Session, Any],
) -> None:
    manager, session, subscriber = raw
    quiet(session)
    msg_id = session.client.execute(PRINT.format(mib=30))
    await asyncio.sleep(5)
    reader = await read(session, subscriber, msg_id, pause_s=0.01)
    assert (reader.bytes, reader.digest.hexdigest(), reader.errors) == (30 * MIB, expected(30), ""), reader.raised
    assert reader.types[:2] == ["busy", "execute_input"]
    assert set(reader.types[2:-1]) == {"stream"}
    assert peak_mib(manager) < PEAK_MIB


@pytest.mark.timeout(400)
async def test_an_interrupt_is_answered_while_nobody_reads_the_output(
    raw: tuple[AsyncKernelManager, Session, Any],
) -> None:
    manager, session, subscriber = raw
    quiet(session)
    msg_id = session.client.execute("while True: print('v' * 99)")
    await asyncio.sleep(8)
    await asyncio.wait_for(manager.interrupt_kernel(), 20)
    reader = await read(session, subscriber, msg_id)
    assert reader.types[-2:] == ["error", "idle"]
    # what had been printed by then, not more: the cell waited
    assert 0 < reader.bytes < 200 * MIB
    reader = await read(session, subscriber, session.client.execute("print('alive')"))
    assert reader.bytes == len("alive\n")
    assert peak_mib(manager) < PEAK_MIB


@pytest.mark.timeout(900)  # the guest makes them one by one
async def test_thousands_of_displays_arrive_in_order(raw: tuple[AsyncKernelManager, Session, Any]) -> None:
    manager, session, subscriber = raw
    quiet(session)
    reader = await read(session, subscriber, session.client.execute(DISPLAYS.format(count=DISPLAYED)))
    assert reader.texts == [f"{n:2000}" for n in range(DISPLAYED)]
    assert reader.types == ["busy", "execute_input", *["display_data"] * DISPLAYED, "idle"]
    assert peak_mib(manager) < PEAK_MIB


@pytest_asyncio.fixture
async def roomy(start_kernel: StartKernel) -> AsyncIterator[tuple[AsyncKernelManager, Session]]:
    """A kernel with 768 MiB. A VM of the default size has 150 to spare, and a large message is in it several times."""
    name = install(name="vm-sandbox-roomy", profile="roomy").name
    async with start_kernel(name, ready_timeout_s=300) as (manager, client):
        session = Session(client)
        await session.run("1", timeout_s=300)  # its golden snapshot may have to be built
        yield manager, session


@pytest.mark.timeout(400)
async def test_a_30_mb_image_arrives(roomy: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = roomy
    code = """
        import os, hashlib, base64
        from IPython.display import publish_display_data
        image = base64.b64encode(os.urandom(1 << 20) * 30).decode()
        publish_display_data({"image/png": image})
        hashlib.sha256(image.encode()).hexdigest()
    """
    cell = await session.run(code, timeout_s=120)
    assert cell.status == "ok", cell.reply["content"]
    image = cell.of("display_data")[0]["data"]["image/png"]
    assert len(image) == 30 * MIB * 4 // 3
    assert cell.value == repr(hashlib.sha256(image.encode()).hexdigest())
    assert cell.types == ["busy", "execute_input", "display_data", "execute_result", "idle"]
    assert peak_mib(manager) < PEAK_MIB


@pytest.mark.timeout(400)
async def test_a_100_mb_comm_buffer_goes_either_way(roomy: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = roomy
    made = await session.run(TARGET)
    assert made.status == "ok", made.reply["content"]
    session.send("comm_open", {"comm_id": "volume-1", "target_name": "volume", "data": {}})
    opened = await session.run("print(send(100))", timeout_s=120)
    assert opened.status == "ok", opened.reply["content"]
    (arrived,) = [m for m in opened.iopub if m["msg_type"] == "comm_msg"]
    assert len(arrived["buffers"][0]) == 100 * MIB
    assert hashlib.sha256(arrived["buffers"][0]).hexdigest() == opened.stream().strip()
    peak = peak_mib(manager)
    assert peak < PEAK_MIB
    comm_id = arrived["content"]["comm_id"]
    buffer = os.urandom(MIB) * 100
    session.send("comm_msg", {"comm_id": comm_id, "data": {}}, buffers=[buffer])
    got = await session.run("print(*received)", timeout_s=120)
    assert got.stream().split() == [str(100 * MIB), hashlib.sha256(buffer).hexdigest()]
    assert peak_mib(manager) < PEAK_MIB


TARGET = """
import hashlib, os
received = []
comms = []
def note(message):
    view = message['buffers'][0]
    received.extend([len(view), hashlib.sha256(view).hexdigest()])
def opened(comm, message):
    comm.on_msg(note)
    comms.append(comm)
get_ipython().kernel.comm_manager.register_target('volume', opened)
def send(mib):
    data = os.urandom(1 << 20) * mib
    comms[0].send({}, buffers=[data])
    return hashlib.sha256(data).hexdigest()
"""


@pytest.fixture
def short_stall(vm_home: Path) -> Iterator[None]:
    """A pool whose kernels cut off a client after two seconds."""
    stop_service()
    write_config(CONFIG + "c.PoolConfig.output_stall_s = 2.0\n")
    yield
    stop_service()
    write_config(CONFIG)


@pytest.mark.timeout(400)
async def test_a_client_that_does_not_read_is_cut_off_and_told_and_the_others_get_everything(
    short_stall: None, start_kernel: StartKernel
) -> None:
    async with start_kernel() as (manager, client):
        session = Session(client)
        quiet(session)
        stalled, other = subscribe(manager), subscribe(manager)
        try:
            reader = await read(session, other, client.execute(DISPLAYS.format(count=DISPLAYED)))
            assert len(reader.texts) == DISPLAYED
            assert reader.types[-1] == "idle"
            assert peak_mib(manager) < PEAK_MIB
            late = Reader(session, stalled)
            await asyncio.to_thread(late.read_until_told)
            assert "took no output for 2 s (PoolConfig.output_stall_s)" in late.errors
            assert re.search(r"up to [1-9][0-9]* messages did not reach it", late.errors)
            assert 0 < len(late.texts) < DISPLAYED
            # it is not cut off any more
            msg_id = client.execute("print('after')")
            assert (await read(session, stalled, msg_id)).bytes == len("after\n")
        finally:
            stalled.context.destroy(linger=0)
            other.context.destroy(linger=0)
