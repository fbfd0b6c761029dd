"""The connection to libvirt: one owner at a time, and a crash of its owner leaves nothing for long."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vm.child import Child, in_child
from tests.vm.places import Place, files_below
from vm_kernel.errors import CloneError, HostError
from vm_kernel.vm.domain_xml import DOMAIN_TITLE
from vm_kernel.vm.hypervisor import Hypervisor, _is_orphan
from vm_kernel.vm.machine import clone
from vm_kernel.vm.process import qemus_of
from vm_kernel.vm.spec import VMSpec


def test_close_destroys_what_runs_and_leaves_nothing(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        hv = place.hypervisor()
        golden = place.snapshot(hv, tiny)
        machines = [clone(hv, golden, f"vm-{number}") for number in range(3)]
        hv.close()
        hv.close()
        assert not any(Path(f"/proc/{machine.pid}").exists() for machine in machines)
        assert [path.name for path in place.run.iterdir()] == ["cache"]
        for machine in machines:
            machine.destroy()
        with pytest.raises(CloneError, match="the service is stopping"):
            clone(hv, golden, "vm-late")
        golden.close()

    in_child(body)


def test_a_second_process_is_turned_away(place: Place) -> None:
    def first() -> None:
        with place.hypervisor():
            time.sleep(60)

    def second() -> None:
        with pytest.raises(HostError, match="Another process"):
            place.hypervisor()

    owner = Child(first)
    _wait_for(place.run / "vm")
    in_child(second)
    owner.kill()
    in_child(lambda: place.hypervisor().close())


def test_a_process_that_was_killed_leaves_nothing_after_the_next_start(place: Place, tiny: VMSpec) -> None:
    mark = place.run.parent / "ready"

    def doomed() -> None:
        hv = place.hypervisor()
        golden = place.snapshot(hv, tiny)
        clones = [clone(hv, golden, f"vm-{number}") for number in range(2)]
        mark.write_text(" ".join(str(machine.pid) for machine in clones))
        time.sleep(60)

    def successor() -> Any:
        with place.hypervisor() as hv:
            count = hv.destroy_leftovers()
            assert files_below(place.run) == []
            assert hv.destroy_leftovers() == 0
            golden = place.snapshot(hv, tiny)
            clone(hv, golden, "vm-0").destroy()
            golden.close()
        return count

    owner = Child(doomed)
    _wait_for(mark)
    owner.kill()
    pids = [int(pid) for pid in mark.read_text().split()]
    assert set(qemus_of(place.run, any_user=True)) == set(pids), "its VMs live on"
    assert in_child(successor) == 2
    assert not any(_runs(pid) for pid in pids)


def test_a_template_of_a_killed_process_is_cleared_away_too(place: Place, tiny: VMSpec) -> None:
    mark = place.run.parent / "boots"

    def doomed() -> None:
        from vm_kernel.vm.golden import load_or_build

        load_or_build(
            place.hypervisor(), tiny, place.golden, lambda stage, _: mark.touch() if "boot" in stage else None
        )

    def successor() -> Any:
        with place.hypervisor() as hv:
            return hv.destroy_leftovers()

    owner = Child(doomed)
    _wait_for(mark)
    owner.kill()
    assert in_child(successor) == 1


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(path.parent.glob(path.name + "*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_root_is_turned_away(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        with pytest.raises(HostError, match="not run by root"):
            Hypervisor.open(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_libvirt_is_reported(place: Place) -> None:
    def body() -> None:
        with pytest.raises(HostError, match="libvirt cannot be opened at qemu:///nonsense"):
            Hypervisor.open(place.run, "qemu:///nonsense")

    in_child(body)


def test_a_living_process_keeps_its_vms_on_a_shared_libvirt() -> None:
    def xml(pid: int, title: str = DOMAIN_TITLE) -> str:
        return f"<domain><title>{title}</title><x value='mem-path=/proc/{pid}/fd/9,share=off'/></domain>"

    assert _is_orphan(xml(1 << 22))
    assert not _is_orphan(xml(os.getpid()))
    assert not _is_orphan(xml(1 << 22, "somebody else's"))
    assert not _is_orphan("<domain/>")
