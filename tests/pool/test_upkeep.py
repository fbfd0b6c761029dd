"""Warm VMs and golden snapshots that get old are replaced: the new one is there first, and sessions go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import CONFIG, wait_until, write_config
from tests.guest_session import GuestSession
from tests.pool.conftest import Configured
from tests.pool.rest import TIMEOUT_S, assert_clean, profile, status, used_and_at_rest, vms
from vm_kernel import paths
from vm_kernel.pool.client import PoolConnection

TWO_DAYS_S = 2 * 86400


def test_warm_vms_that_get_old_are_replaced_one_by_one(vm_home: Path) -> None:
    before = used_and_at_rest(vm_home)
    old = set(vms("warm"))
    fewest = 99
    write_config(CONFIG + "c.PoolConfig.ttl_s = 0.5")
    with closing(PoolConnection.open()) as connection:
        connection.reload()

    def replaced() -> bool:
        nonlocal fewest
        warm = set(vms("warm"))
        fewest = min(fewest, len(warm))
        return not old & warm

    wait_until(replaced, TIMEOUT_S, "the old VMs are gone")
    assert fewest == 2, "there were always as many as are to be kept"
    write_config(CONFIG)
    with closing(PoolConnection.open()) as connection:
        connection.reload()
    assert_clean(vm_home, before)


@pytest.fixture
def own_golden(configured: Configured, vm_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the default profile's golden snapshot; only this test's service uses it, and it is two days old."""
    used_and_at_rest(vm_home)
    key = profile()["golden_key"]
    configured("c.PoolConfig.golden_max_age_s = 3600")
    store = vm_home / "own-golden"
    store.mkdir()
    subprocess.run(["cp", "-a", "--sparse=always", paths.golden_dir() / key, store / key], check=True)
    owner = paths.golden_dir().stat()
    os.chown(store, owner.st_uid, owner.st_gid)
    manifest = json.loads((store / key / "manifest.json").read_text())
    manifest["created_at"] -= TWO_DAYS_S
    (store / key / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("VM_KERNEL_GOLDEN", str(store))
    yield store / key
    configured("")
    shutil.rmtree(store)


@pytest.mark.timeout(400)  # a golden snapshot is built
def test_an_old_golden_snapshot_is_built_anew_beside_the_sessions(own_golden: Path, vm_home: Path) -> None:
    with closing(PoolConnection.open()) as connection:
        session = GuestSession(connection.acquire())
        session.execute("x = 41")
        # the old one serves at once; what lies on the disk is not needed for that
        row, old = profile(), set(vms("warm"))
        assert row["state"] == "ok"
        assert (datetime.now(UTC) - datetime.fromisoformat(row["golden_created_at"])).total_seconds() > TWO_DAYS_S - 60
        wait_until(lambda: profile()["golden_build"] != row["golden_build"], 200.0, "there is a new snapshot")
        assert profile()["golden_key"] == row["golden_key"]
        wait_until(lambda: len(vms("warm")) == 2 and not old & set(vms("warm")), TIMEOUT_S, "VMs are replaced")
        assert session.value("x + 1") == 42
        session.stream.close()
    kept = json.loads((own_golden / "manifest.json").read_text())
    assert kept["ram_sha256"].startswith(profile()["golden_build"])
    before = used_and_at_rest(vm_home)
    # files that are taken away or damaged do not disturb a service that has them in memory
    os.truncate(own_golden / "ram", 1 << 20)
    assert_clean(vm_home, before)
    shutil.rmtree(own_golden)
    assert_clean(vm_home, before)
    assert status()["pid"] == before.pid
