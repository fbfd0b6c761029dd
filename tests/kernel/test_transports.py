"""The sockets as clients find them: greeting, encryption, unix sockets, and messages that are not to be heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.session import Session as Wire

from tests.kernel.session import Session, connected, unready_kernel


async def test_each_subscriber_is_greeted(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, _ = kernel
    for topic in (b"", b"", b"kernel.x"):
        socket = manager.connect_iopub()
        socket.setsockopt(zmq.UNSUBSCRIBE, b"")
        socket.setsockopt(zmq.SUBSCRIBE, topic)
        assert await socket.poll(5000)
        frames = await socket.recv_multipart()
        _, frames = manager.session.feed_identities(frames)
        message = manager.session.deserialize(frames)
        assert message["msg_type"] == "iopub_welcome"
        assert message["content"] == {"subscription": topic.decode()}
        assert message["parent_header"] == {}
        socket.close(linger=0)


async def test_the_heartbeat_beats_while_a_cell_runs(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    msg_id = session.client.execute("import time; time.sleep(1)")
    socket = manager.connect_hb()
    for _ in range(5):
        await socket.send(b"ping")
        assert await socket.poll(500)
        assert await socket.recv() == b"ping"
    socket.close(linger=0)
    assert msg_id not in session.replies
    await session.finish(msg_id)


async def test_over_unix_sockets(kernelspec: str, warm_pool: None) -> None:
    async with unready_kernel(kernelspec, transport="ipc") as (manager, session):
        await session.client.wait_for_ready(timeout=60)
        assert (await session.run("6 * 7")).value == "42"
        sockets = [Path(f"{manager.ip}-{port}") for port in manager.ports]
        assert all(path.is_socket() for path in sockets)
        await manager.shutdown_kernel()
    assert not any(path.exists() for path in sockets)


async def test_encrypted_with_curve_keys(kernelspec: str, warm_pool: None) -> None:
    async with unready_kernel(kernelspec, transport_encryption="required") as (manager, session):
        await session.client.wait_for_ready(timeout=60)
        assert manager.curve_secretkey
        assert (await session.run("6 * 7")).value == "42"
        assert await manager.is_alive()
        plain = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        plain.connect(f"tcp://{manager.ip}:{manager.shell_port}")
        frames = manager.session.serialize(manager.session.msg("kernel_info_request"))
        await plain.send_multipart(frames)
        assert not await plain.poll(500), "a client without keys is not heard"
        plain.close(linger=0)


async def test_a_client_without_an_identity_is_answered(kernel: tuple[AsyncKernelManager, Session]) -> None:
    """jupyter_server asks like this whether a kernel is there, on shell and on control, for each new tab."""
    manager, session = kernel
    await session.run("1")
    for connect in (manager.connect_shell, manager.connect_control, manager.connect_shell):
        socket = connect()
        message = manager.session.msg("kernel_info_request")
        manager.session.send(socket, message)
        assert await socket.poll(10000)
        _, frames = manager.session.feed_identities(await socket.recv_multipart())
        reply = manager.session.deserialize(frames)
        assert reply["parent_header"]["msg_id"] == message["header"]["msg_id"]
        assert reply["msg_type"] == "kernel_info_reply"
        socket.close(linger=0)


def _unsigned(frames: list[bytes]) -> list[bytes]:
    return [frames[0], b"", *frames[2:]]


def _forged(frames: list[bytes]) -> list[bytes]:
    return [frames[0], b"0" * 64, *frames[2:]]


def _changed(frames: list[bytes]) -> list[bytes]:
    return [*frames[:5], frames[5].replace(b"marker", b"MARKER")]


BAD_SIGNATURES: list[Callable[[list[bytes]], list[bytes]]] = [_unsigned, _forged, _changed]


async def test_messages_with_wrong_signatures_are_ignored(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    socket = manager.connect_shell()
    request = {"code": "open('/tmp/marker', 'a').write('x')", "silent": True}
    for spoil in BAD_SIGNATURES:
        frames = manager.session.serialize(manager.session.msg("execute_request", request))
        await socket.send_multipart(spoil(frames))
    once = manager.session.serialize(manager.session.msg("execute_request", request))
    for _ in range(3):  # a replay is refused
        await socket.send_multipart(once)
    await socket.poll(10000)
    await asyncio.sleep(0.3)
    socket.close(linger=0)
    assert (await session.run("import os; os.path.getsize('/tmp/marker'), os.path.exists('/tmp/MARKER')")).value == (
        "(1, False)"
    )


def _signed(wire: Wire, parts: list[bytes]) -> list[bytes]:
    return [b"<IDS|MSG>", wire.sign(parts[:4]), *parts]


def _header(**fields: Any) -> bytes:
    given = {"msg_id": "1", "msg_type": "execute_request", "session": "s", "username": "u", "version": "5.3", **fields}
    return json.dumps({name: value for name, value in given.items() if value is not None}).encode()


MALFORMED: dict[str, Callable[[Wire], list[bytes]]] = {
    "empty": lambda wire: [b""],
    "no delimiter": lambda wire: [b"a", b"b", b"c"],
    "nothing after the delimiter": lambda wire: [b"<IDS|MSG>"],
    "too few parts": lambda wire: _signed(wire, [_header(), b"{}", b"{}"]),
    "header is no JSON": lambda wire: _signed(wire, [b"{", b"{}", b"{}", b"{}"]),
    "header is a list": lambda wire: _signed(wire, [b"[]", b"{}", b"{}", b"{}"]),
    "header is binary": lambda wire: _signed(wire, [b"\xff\x00\xfe", b"{}", b"{}", b"{}"]),
    "nested too deeply": lambda wire: _signed(wire, [_header(), b"{}", b"{}", b"[" * 100000]),
    "no type": lambda wire: _signed(wire, [_header(msg_type=None), b"{}", b"{}", b"{}"]),
    "type is a number": lambda wire: _signed(wire, [_header(msg_type=3), b"{}", b"{}", b"{}"]),
    "unknown type": lambda wire: _signed(wire, [_header(msg_type="make_coffee_request"), b"{}", b"{}", b"{}"]),
    "id is an object": lambda wire: _signed(wire, [_header(msg_id={}), b"{}", b"{}", b"{}"]),
    "content is no object": lambda wire: _signed(wire, [_header(), b"{}", b"{}", b'"code"']),
    "no code": lambda wire: _signed(wire, [_header(), b"{}", b"{}", b"{}"]),
    "code is a number": lambda wire: _signed(wire, [_header(), b"{}", b"{}", b'{"code": 5}']),
    "an answer that nobody asked for": lambda wire: _signed(
        wire, [_header(msg_type="input_reply"), b"{}", b"{}", b"{}"]
    ),
}


async def test_malformed_messages_are_ignored(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    for name, malformed in MALFORMED.items():
        for connect in (manager.connect_shell, manager.connect_control, manager.connect_stdin):
            socket = connect(identity=b"malformed")
            await socket.send_multipart(malformed(manager.session))
            socket.close(linger=1000)
        cell = await session.run("1 + 1")
        assert cell.of("execute_result"), (name, cell)
    async with connected(manager) as other:
        assert (await other.run("1 + 1")).value == "2"
