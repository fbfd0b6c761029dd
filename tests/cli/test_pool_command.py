"""``vm-kernel pool``: starting, looking at and stopping the service."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command import vm_kernel
from tests.conftest import ended, qemus, stop_service, wait_until


def test_start_status_stop(vm_home: Path) -> None:
    stop_service()
    assert vm_kernel("pool", "start").returncode == 0
    again = vm_kernel("pool", "start")
    assert again.returncode == 0, again.stderr
    shown = vm_kernel("pool", "status")
    assert shown.returncode == 0, shown.stderr
    assert "acquire" in shown.stdout
    status = json.loads(vm_kernel("pool", "status", "--json").stdout)
    assert f"(pid {status['pid']}," in again.stdout
    assert [profile["name"] for profile in status["profiles"]] == ["default", "roomy", "small"]
    stopped = vm_kernel("pool", "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert not qemus(vm_home)
    wait_until(lambda: ended(status["pid"]), 60.0, "the service's process ends")


def test_a_service_that_does_not_run_has_no_status_and_need_not_be_stopped(vm_home: Path) -> None:
    stop_service()
    shown = vm_kernel("pool", "status")
    assert shown.returncode == 1
    assert "not running" in shown.stderr
    assert "vm-kernel pool start" in shown.stderr
    assert vm_kernel("pool", "stop").returncode == 0
