"""Where systemd looks after a user, the service that a kernel starts is in a scope that bounds it and all its VMs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.command import vm_kernel
from tests.conftest import qemu_of, qemus, service_pid, stop_service, wait_until
from tests.guest_session import GuestSession
from vm_kernel.errors import VMKernelError
from vm_kernel.pool import scope
from vm_kernel.pool.client import PoolConnection

CGROUPS = Path("/sys/fs/cgroup")
TIMEOUT_S = 60.0


def group_of(pid: int) -> Path:
    """The control group of a process."""
    return CGROUPS / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


@pytest.fixture
def systemd(vm_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user's own systemd, as after a login. No service runs before it, and none after it."""
    stop_service()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("SYSTEMD_LOG_TARGET", "console")
    # it shares the groups that it makes with nobody
    begin = "mkdir -p lab/manager; echo $$ >lab/manager/cgroup.procs; exec /usr/lib/systemd/systemd --user"
    with subprocess.Popen(["bash", "-c", begin], cwd=CGROUPS) as manager:
        try:
            wait_until((tmp_path / "systemd" / "private").exists, TIMEOUT_S, "systemd listens")
            wait_until(lambda: scope.words() != [], TIMEOUT_S, "systemd makes scopes")
            yield
        finally:
            stop_service()
            manager.terminate()


def told_by_doctor() -> str:
    """That all VMs together are bounded, and by what."""
    report = json.loads(vm_kernel("doctor", "--security", "--json").stdout)
    (told,) = (check for check in report["checks"] if check["name"] == "cgroup")
    assert told["level"] == "ok", told
    return str(told["summary"])


def test_a_service_that_starts_on_demand_is_bounded_with_all_its_vms(systemd: None, vm_home: Path) -> None:
    assert "a scope of systemd's" in told_by_doctor()
    with closing(PoolConnection.open()) as connection:
        lease = connection.acquire()
        service = service_pid()
        group = group_of(service)
        assert re.search(r"/vm-kernel\.slice/[^/]+\.scope$", str(group))
        assert {group_of(qemu.pid) for qemu in qemus(vm_home)} == {group}
        of_the_host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert int((group / "memory.max").read_text()) == pytest.approx(0.8 * of_the_host, rel=0.01)
        assert (group / "pids.max").read_text() == f"{scope.TASKS_MAX}\n"
        assert (group / "cpu.weight").read_text() == f"{scope.CPU_WEIGHT}\n"
        assert "the pool service's" in told_by_doctor()

        # the bound holds, for the VM that runs into it and for nobody else
        pid = qemu_of(vm_home, lease.vm.name)
        (group / "memory.max").write_text(str(int((group / "memory.current").read_text()) + (24 << 20)))
        with pytest.raises((VMKernelError, OSError, EOFError)):
            GuestSession(lease).value("len(bytearray(b'x') * (200 << 20))")
        wait_until(lambda: pid not in {qemu.pid for qemu in qemus(vm_home)}, TIMEOUT_S, "that VM has ended")
        assert re.search(r"^oom_kill [1-9]", (group / "memory.events").read_text(), re.MULTILINE)
        (group / "memory.max").write_text("max")
        assert service_pid() == service
