"""What people and programs get wrong: each has a clear error, and the service lives on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.conftest import CONFIG, service_pid
from tests.guest_session import GuestSession
from vm_kernel import paths
from vm_kernel.errors import ConfigError, GoldenError, ImageError, PoolFull, UnknownProfile
from vm_kernel.image.store import open_image
from vm_kernel.pool.client import PoolConnection
from vm_kernel.pool.protocol import MAX_REQUEST


def acquire(profile: str = "default") -> None:
    connection = PoolConnection.open()
    try:
        connection.acquire(profile)
    finally:
        connection.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"hello\n",
        b'{"op": "fly"}\n',
        b"\xff\xfe\n",
        b"{" * 1000 + b"\n",
        os.urandom(500) + b"\n",
    ],
)
def test_garbage_on_the_socket_gets_an_error_and_the_service_lives_on(vm_home: Path, request_bytes: bytes) -> None:
    pid = service_pid()
    assert b'"event":"error"' in _say(request_bytes)
    assert service_pid() == pid


def test_an_endless_request_is_cut_off(vm_home: Path) -> None:
    pid = service_pid()
    assert b"PoolRequestError" in _say(b"x" * (MAX_REQUEST + 5000))
    assert service_pid() == pid


def test_a_request_with_wrong_types_is_refused(vm_home: Path) -> None:
    assert b"must be strings" in _say(b'{"op": "acquire", "profile": 7}\n')


def test_an_unknown_profile_is_named_with_the_known_ones(vm_home: Path) -> None:
    with pytest.raises(UnknownProfile, match=r"'big'.*default"):
        acquire("big")


def test_another_profile_gives_another_vm(configured, vm_home: Path) -> None:  # type: ignore[no-untyped-def]
    configured("c.PoolConfig.profiles = {'roomy': {'memory_mib': 512, 'preload': ['wave'], 'min_warm': 0}}")
    connection = PoolConnection.open()
    lease = connection.acquire("roomy")
    assert lease.vm.memory_mib == 512
    session = GuestSession(lease)
    kib = session.value("int(open('/proc/meminfo').read().split()[1])")
    assert 400 * 1024 < kib < 512 * 1024
    assert session.value("[name in __import__('sys').modules for name in ('wave', 'numpy')]") == [True, False]
    connection.close()


def test_a_module_that_cannot_be_preloaded_is_named(configured, vm_home: Path) -> None:  # type: ignore[no-untyped-def]
    configured("c.PoolConfig.profiles = {'typo': {'preload': ['nosuch.module'], 'min_warm': 0}}")
    with pytest.raises(GoldenError, match="No module named 'nosuch'"):
        acquire("typo")
    acquire()


def test_a_missing_image_is_named_with_the_command_that_builds_it(configured) -> None:  # type: ignore[no-untyped-def]
    configured("c.PoolConfig.image = 'nosuch'")
    pid = service_pid()
    with pytest.raises(ImageError, match="nosuch") as caught:
        acquire()
    assert "vm-kernel image build" in caught.value.hint
    assert service_pid() == pid


def test_a_truncated_image_is_named_and_the_service_lives_on(configured, vm_home: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    image = open_image("default")
    store = vm_home / "truncated"
    broken = store / image.digest
    broken.mkdir(parents=True)
    for path in image.folder.iterdir():
        with path.open("rb") as whole:
            (broken / path.name).write_bytes(whole.read(4 << 20 if path == image.root else -1))
    (store / "names").mkdir()
    (store / "names" / "default").symlink_to(f"../{image.digest}")
    monkeypatch.setenv("VM_KERNEL_IMAGES", str(store))
    configured("")
    pid = service_pid()
    with pytest.raises(ImageError, match=r"root\.erofs") as caught:
        acquire()
    assert "vm-kernel image build" in caught.value.hint
    assert service_pid() == pid
    monkeypatch.undo()


def test_a_pool_at_its_limit_says_so_and_recovers(configured) -> None:  # type: ignore[no-untyped-def]
    configured("c.PoolConfig.max_vms = 1; c.PoolConfig.min_warm = 1; c.PoolConfig.acquire_timeout_s = 0.5")
    first = PoolConnection.open()
    lease = first.acquire()
    with pytest.raises(PoolFull, match="All 1 VMs") as caught:
        acquire()
    assert "max_vms" in caught.value.hint
    first.close()
    lease.stream.close()
    acquire()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("c.PoolConfig.min_warm = = 3", "line {}"),
        ("c.PoolConfig.min_warm = 1 / 0", "line {}"),
        ("c.PoolConfig.min_warm = 'many'", "min_warm"),
        ("c.PoolConfig.max_wms = 3", "max_wms"),
        ("c.PoolConfig.accelerator = 'warp'", "accelerator"),
        ("c.PoolConfig.profiles = {'a': {'memory': 3}}", "memory"),
        ("c.PoolConfig.profiles = {'a': {'memory_mib': -3}}", "memory_mib"),
        ("c.PoolConfig.profiles = {'a': 3}", "dictionary"),
        ("c.PoolConfig.preload = ['numpy', 'scipy stats']", "'scipy stats' is not the name of a module"),
        ("c.PoolConfig.preload = ['numpy', 3]", "preload"),
        ("c.PoolConfig.preload = [f'module_{n}' for n in range(200)]", "more than 1000 characters"),
    ],
)
def test_a_broken_configuration_file_is_named_with_what_is_wrong(configured, text: str, named: str) -> None:  # type: ignore[no-untyped-def]
    configured(text)
    with pytest.raises(ConfigError, match=named.format(CONFIG.count("\n") + 1)):
        acquire()
    assert not paths.pool_socket().exists()


def _say(request: bytes) -> bytes:
    """The service's answer to these bytes."""
    PoolConnection.open().close()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(paths.pool_socket()))
        sock.settimeout(60)
        try:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
        except BrokenPipeError:
            pass  # it has heard enough
        answer = b""
        while data := sock.recv(65536):
            answer += data
        return answer
