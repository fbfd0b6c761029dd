"""Clients that say nothing, leave early or come in hundreds. Nobody else notices, and nothing is left of them."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.pool.rest import TIMEOUT_S, Rest, assert_clean, profile, used_and_at_rest
from vm_kernel import paths
from vm_kernel.pool.protocol import encode

ACQUIRE = encode({"op": "acquire", "profile": "default"})


@pytest.fixture
def rest(vm_home: Path) -> Rest:
    """The usual service, at rest."""
    return used_and_at_rest(vm_home)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process may have more than a thousand descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(str(paths.pool_socket()))
    sock.settimeout(60)
    return sock


def test_clients_that_ask_and_vanish_before_the_answer(rest: Rest, vm_home: Path) -> None:
    for _ in range(30):
        with ExitStack() as stack:
            connect(stack).sendall(ACQUIRE)
    assert_clean(vm_home, rest)


def test_a_client_that_takes_the_answer_and_not_the_descriptor(rest: Rest, vm_home: Path) -> None:
    with ExitStack() as stack:
        client = connect(stack)
        client.sendall(ACQUIRE)
        assert client.recv(1) == b"{"
    assert_clean(vm_home, rest)


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_clients_at_once(rest: Rest, vm_home: Path) -> None:
    with ExitStack() as stack:
        clients = [connect(stack) for _ in range(1000)]
        for client in clients[::2]:
            with suppress(OSError):
                client.sendall(ACQUIRE)
        # those who ask get a VM, a place in the queue, or a refusal; the others are silent
        answers = [client.recv(65536) for client in clients[::2]]
        assert all(b'"event"' in answer for answer in answers)
        assert sum(b"PoolFull" in answer and b"the limit" in answer for answer in answers) >= 200
        assert all(b"No request within" in client.recv(65536) for client in clients[1::2])
    wait_until(lambda: profile()["waiting"] == 0, TIMEOUT_S, "the service has noticed that they have gone")
    assert_clean(vm_home, rest)
