"""The configuration read anew: profiles come, change and go, and no lease is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.command import vm_kernel
from tests.conftest import CONFIG, qemu_of, service_pid, stop_service, wait_until, write_config
from tests.guest_session import GuestSession
from tests.pool.rest import TIMEOUT_S, at_rest, profile, status
from vm_kernel import paths
from vm_kernel.errors import ConfigError, ImageError, UnknownProfile
from vm_kernel.pool.client import PoolConnection
from vm_kernel.vm.memory import unique_memory


@pytest.fixture
def service(vm_home: Path) -> Iterator[int]:
    """The usual service, at rest; afterwards with the usual configuration."""
    with closing(PoolConnection.open()) as connection:
        connection.acquire().stream.close()
    yield at_rest(vm_home).pid
    stop_service()
    write_config(CONFIG)


def reload(text: str) -> list[str]:
    write_config(CONFIG + text)
    with closing(PoolConnection.open()) as connection:
        return list(connection.reload()["changed"])


def test_sizes_change_and_sessions_go_on(service: int) -> None:
    with closing(PoolConnection.open()) as connection:
        session = GuestSession(connection.acquire())
        session.execute("x = 41")
        changed = reload("c.PoolConfig.min_warm = 3; c.PoolConfig.prepared = 0")
        assert "min_warm: 2 -> 3" in changed
        assert "profile default: min_warm 2 -> 3" in changed
        wait_until(lambda: (profile()["warm"], profile()["prepared"]) == (3, 0), TIMEOUT_S, "the pool has grown")
        reload("c.PoolConfig.max_vms = 1; c.PoolConfig.min_warm = 0")
        assert session.value("x + 1") == 42
        session.stream.close()
    assert status()["pid"] == service


def test_profiles_come_and_go_and_their_sessions_stay(service: int) -> None:
    assert "profile new was added" in reload("c.PoolConfig.profiles['new'] = {'memory_mib': 768, 'min_warm': 1}")
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire("new")
        session = GuestSession(lease)
        assert lease.vm.memory_mib == 768
        assert paths.profile_facts("new").exists()
        assert any("new was removed" in change for change in reload(""))
        assert not paths.profile_facts("new").exists()
        with closing(PoolConnection.open()) as another, pytest.raises(UnknownProfile):
            another.acquire("new")
        wait_until(lambda: profile("new")["warm"] == 0, TIMEOUT_S, "its warm VMs go")
        assert (profile("new")["state"], profile("new")["leased"]) == ("ending", 1)
        assert session.value("6 * 7") == 42
        session.stream.close()
    wait_until(lambda: "new" not in [row["name"] for row in status()["profiles"]], TIMEOUT_S, "it is forgotten")
    assert status()["pid"] == service


def test_a_wrong_configuration_is_refused_and_the_old_one_stays(service: int) -> None:
    with pytest.raises(ConfigError, match="min_warm"):
        reload("c.PoolConfig.min_warm = 'many'")
    with pytest.raises(ImageError, match="nosuch"):
        reload("c.PoolConfig.profiles['new'] = {'image': 'nosuch'}")
    refused = vm_kernel("pool", "reload")
    assert refused.returncode == 1
    assert "nosuch" in refused.stderr
    assert profile()["min_warm"] == 2
    assert "new" not in [row["name"] for row in status()["profiles"]]


def test_settings_that_need_a_restart_are_named(service: int) -> None:
    write_config(CONFIG + "c.PoolConfig.accelerator = 'tcg'")
    told = vm_kernel("pool", "reload")
    assert told.returncode == 0, told.stderr
    assert "only after `vm-kernel pool stop`: accelerator" in told.stdout
    write_config(CONFIG)
    assert "accelerator" in vm_kernel("pool", "reload").stdout


def test_sighup_reloads(service: int) -> None:
    write_config(CONFIG + "c.PoolConfig.min_warm = 1")
    os.kill(service_pid(), signal.SIGHUP)
    wait_until(lambda: profile()["min_warm"] == 1, 60.0, "the configuration was read")
    write_config(CONFIG + "this is no Python")
    os.kill(service_pid(), signal.SIGHUP)
    log = paths.log_file()
    wait_until(lambda: "reload_refused" in log.read_text(), 60.0, "the refusal is logged")
    assert profile()["min_warm"] == 1


def test_another_memory_size_replaces_warm_vms_and_leaves_sessions(service: int) -> None:
    old = profile()["golden_key"]
    with closing(PoolConnection.open()) as connection:
        session = GuestSession(connection.acquire())
        reload("c.PoolConfig.vm_memory_mib = 768\nc.PoolConfig.preload = []")  # as "roomy": its snapshot may be there
        wait_until(lambda: profile()["golden_key"] != old, 300.0, "the new snapshot is in use")
        wait_until(lambda: memory_of_a_vm() == 768, TIMEOUT_S, "warm VMs of the old kind are replaced")
        assert session.value("6 * 7") == 42
        session.stream.close()


def memory_of_a_vm() -> int:
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        lease.stream.close()
        return lease.vm.memory_mib


def test_vms_need_not_share_memory(service: int, vm_home: Path) -> None:
    assert shared_by_a_vm(vm_home) > 0
    assert "share_memory: True -> False" in reload("c.PoolConfig.share_memory = False")
    wait_until(lambda: shared_by_a_vm(vm_home) == 0, TIMEOUT_S, "warm VMs that share are replaced")
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        assert GuestSession(lease).value("6 * 7") == 42
        assert unique_memory(qemu_of(vm_home, lease.vm.name)) >= lease.vm.memory_mib << 20
        lease.stream.close()
    assert status()["pid"] == service


def shared_by_a_vm(home: Path) -> int:
    """Bytes of the golden image that a VM, one that runs a cell, has in its memory and does not have for itself."""
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        assert GuestSession(lease).value("1 + 1") == 2
        shared, of_ram = 0, False
        for line in Path(f"/proc/{qemu_of(home, lease.vm.name)}/smaps").read_text().splitlines():
            name, *rest = line.split()
            if not name.endswith(":"):
                of_ram = "memfd:vm-kernel-golden" in line
            elif of_ram and name in ("Rss:", "Anonymous:"):
                shared += (1024 if name == "Rss:" else -1024) * int(rest[0])
        lease.stream.close()
        return shared
