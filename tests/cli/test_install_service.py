"""``vm-kernel pool install-service``: units that systemd takes, and a service that does what they say."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.command import vm_kernel
from tests.conftest import CONFIG, qemus, stop_service, wait_until, write_config
from vm_kernel import paths
from vm_kernel.commands import units
from vm_kernel.errors import ConfigError
from vm_kernel.pool import scope
from vm_kernel.pool.client import PoolConnection

NAMES = {"vm-kernel-pool.service", "vm-kernel.slice"}


def printed(*words: str) -> dict[str, str]:
    """The units by name, as --print shows them."""
    done = vm_kernel("pool", "install-service", "--print", *words)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^# (/\S+)\n", done.stdout, flags=re.MULTILINE)[1:]
    return {Path(path).name: text for path, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("whose", ["--user", "--system"])
def test_systemd_takes_the_units(vm_home: Path, tmp_path: Path, whose: str) -> None:
    folder = tmp_path / "units"
    folder.mkdir()
    for name, text in printed(whose, "--memory-max", "16G", "--cpu-quota", "150%").items():
        (folder / name).write_text(text)
    assert {path.name for path in folder.iterdir()} == NAMES
    command = ["systemd-analyze", "verify", *([whose] if whose == "--user" else []), *map(str, folder.iterdir())]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert str(folder) not in done.stderr


@pytest.mark.parametrize("whose", ["--user", "--system"])
def test_what_is_in_the_units(vm_home: Path, whose: str) -> None:
    service, limits = (printed(whose, "--memory-max", "75%", "--tasks-max", "999")[name] for name in sorted(NAMES))
    lines = service.splitlines()
    for line in ("Type=notify", "Slice=vm-kernel.slice", "KillMode=mixed", "OOMPolicy=continue", "NoNewPrivileges=yes",
                 "TasksMax=999", f"Environment=VM_KERNEL_HOME={vm_home}"):  # fmt: skip
        assert line in lines
    assert {"MemoryMax=75%", "TasksMax=999"} <= set(limits.splitlines())
    assert "@" not in service.replace("~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap", "")
    assert "@" not in limits
    assert "CPUQuota" not in limits
    if whose == "--system":
        writable = next(line for line in lines if line.startswith("ReadWritePaths="))
        assert f"-{paths.run_dir()}" in writable.removeprefix("ReadWritePaths=").split()
        assert "PrivateTmp=no" in lines, "the home of this test is below /tmp"


def test_words_with_a_meaning_to_systemd_are_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VM_KERNEL_HOME", '/a b/100%/$HOME/"x"')
    text = units.texts(False, units.Limits(), "nobody")[units.SERVICE]
    assert r'Environment="VM_KERNEL_HOME=/a b/100%%/$$HOME/\"x\""' in text
    monkeypatch.setenv("VM_KERNEL_HOME", "/a\nExecStartPre=/bin/evil")
    with pytest.raises(ConfigError, match="cannot be in a unit"):
        units.texts(False, units.Limits(), "nobody")


@pytest.mark.parametrize(
    "words", [("--memory-max", "lots"), ("--memory-max", "16G\nX=1"), ("--cpu-quota", "two"), ("--tasks-max", "3")]
)
def test_limits_that_systemd_would_not_take_are_refused(vm_home: Path, words: tuple[str, str]) -> None:
    done = vm_kernel("pool", "install-service", "--print", *words)
    assert done.returncode == 1
    assert words[0] in done.stderr
    assert done.stdout == ""


def test_units_are_written_kept_replaced_and_removed(vm_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "systemd" / "user"

    def install(*words: str) -> subprocess.CompletedProcess[str]:
        return vm_kernel("pool", "install-service", "--user", *words, XDG_CONFIG_HOME=str(tmp_path))

    assert install("--no-start").returncode == 0
    assert {path.name for path in folder.iterdir()} == NAMES
    assert install("--no-start").returncode == 0, "the same once more changes nothing"
    before = (folder / scope.SLICE).read_text()
    differing = install("--no-start", "--memory-max", "1G")
    assert differing.returncode == 1
    assert "is there and differs" in differing.stderr
    assert "--force" in differing.stderr
    assert (folder / scope.SLICE).read_text() == before
    assert install("--no-start", "--memory-max", "1G", "--force").returncode == 0
    assert "MemoryMax=1G" in (folder / scope.SLICE).read_text()
    # a PATH without systemctl, so that a systemd of this machine is not told
    removed = vm_kernel("pool", "install-service", "--user", "--uninstall", XDG_CONFIG_HOME=str(tmp_path), PATH="")
    assert removed.returncode == 0, removed.stderr
    assert list(folder.iterdir()) == []
    assert "no units of ours" in install("--uninstall").stdout


def test_without_systemd_nothing_is_written_and_the_way_out_is_named(vm_home: Path, tmp_path: Path) -> None:
    done = vm_kernel("pool", "install-service", "--user", XDG_CONFIG_HOME=str(tmp_path), PATH="")
    assert done.returncode == 1
    assert "not run by systemd" in done.stderr
    assert "vm-kernel pool start" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_systems_service_needs_its_user(vm_home: Path) -> None:
    write_config(CONFIG + "c.PoolConfig.user = 'no-such-user'\n")
    try:
        done = vm_kernel("pool", "install-service", "--system", "--no-start")
    finally:
        write_config(CONFIG)
    assert done.returncode == 1
    assert ("no-such-user" if os.geteuid() == 0 else "Only root") in done.stderr
    assert not (units.folder(system=True) / units.SERVICE).exists()


# ---- the service as systemd starts it


class Manager:
    """Starts the unit's command as it is written there, and hears what the service tells systemd."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._path.chmod(0o777)
        self._socket.settimeout(60.0)

    def start(self) -> subprocess.Popen[bytes]:
        lines = printed("--user")[units.SERVICE].splitlines()
        settings = dict(line.removeprefix("Environment=").split("=", 1) for line in lines if line.startswith("Environ"))
        command = shlex.split(next(line for line in lines if line.startswith("ExecStart=")).partition("=")[2])
        environment = os.environ | settings | {"NOTIFY_SOCKET": str(self._path)}
        return subprocess.Popen(command, env=environment, cwd="/", stderr=subprocess.PIPE)

    def heard(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(vm_home: Path) -> Iterator[Manager]:
    """No service runs; afterwards neither."""
    stop_service()
    manager = Manager(vm_home)
    yield manager
    manager.close()
    (vm_home / "notify").unlink()
    stop_service()
    write_config(CONFIG)


def test_the_service_says_when_it_is_ready_stays_and_ends_on_sigterm(vm_home: Path, manager: Manager) -> None:
    write_config(CONFIG + "c.PoolConfig.idle_exit_s = 0.2\nc.PoolConfig.drain_s = 7.0\n")
    with manager.start() as process:
        assert manager.heard() == ["READY=1"]
        assert process.stderr is not None
        time.sleep(1.5)
        assert process.poll() is None, "it does not end when it is idle"
        with closing(PoolConnection.open(start_service=False)) as connection:
            connection.acquire()
            for qemu in qemus(vm_home):
                assert b"NOTIFY_SOCKET" not in Path(f"/proc/{qemu.pid}/environ").read_bytes()
        with manager.start() as second:
            assert second.wait(30) == 1
            assert second.stderr is not None
            assert b"Another pool service" in second.stderr.read()
        process.send_signal(signal.SIGTERM)
        assert manager.heard() == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=67000000"]
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
    assert not qemus(vm_home)
    assert not paths.pool_socket().exists()


def test_a_manager_that_does_not_listen_is_no_reason_to_fail(vm_home: Path, manager: Manager) -> None:
    manager.close()
    with manager.start() as process:
        wait_until(paths.pool_socket().exists, 60.0, "the service listens")
        with closing(PoolConnection.open(start_service=False)) as connection:
            assert connection.status()["pid"] == process.pid
            connection.stop()
        assert process.wait(30) == 0
