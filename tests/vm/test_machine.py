"""Clones: forked in no time, alike in nothing that must differ, and gone without a trace."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.vm.child import in_child
from tests.vm.places import Place, files_below
from vm_kernel.errors import CloneError, VMError
from vm_kernel.vm.hypervisor import Hypervisor
from vm_kernel.vm.machine import Machine, PreparedMachine, clone, prepare
from vm_kernel.vm.memory import unique_memory
from vm_kernel.vm.spec import VMSpec


def test_a_clone_runs_and_is_destroyed_without_a_trace(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, tiny)
            machine = clone(hv, golden, "vm-1")
            assert machine.alive
            assert (machine.name, machine.cid) == ("vm-1", None)
            assert Path(f"/proc/{machine.pid}").stat().st_uid == os.geteuid() != 0
            assert abs((datetime.now(UTC) - machine.created_at).total_seconds()) < 5
            assert machine.timings["total"] == pytest.approx(sum(list(machine.timings.values())[:-1]))
            assert 1 << 20 < machine.unique_memory() < 64 << 20
            assert machine.channel_path is not None
            with socket.socket(socket.AF_UNIX) as channel:
                channel.connect(str(machine.channel_path))
            assert _state(hv, machine) == "running"

            machine.destroy()
            machine.destroy()
            assert not machine.alive
            assert not Path(f"/proc/{machine.pid}").exists(), "not even a zombie"
            assert files_below(place.run) == []
            with pytest.raises(ProcessLookupError):
                unique_memory(machine.pid)
            golden.close()

    in_child(body)


def test_a_clone_has_the_memory_image_open_as_this_hosts_qemu_can(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, tiny)
            machine = clone(hv, golden, "vm-reader")
            opened = [fd for fd in Path(f"/proc/{machine.pid}/fd").iterdir() if fd.stat().st_ino == golden.ram_inode]
            (flags,) = {Path(f"/proc/{machine.pid}/fdinfo/{fd.name}").read_text().split()[3] for fd in opened}
            access = os.O_RDONLY if hv.capabilities.read_only_memory else os.O_RDWR
            assert int(flags, 8) & os.O_ACCMODE == access
            assert _state(hv, machine) == "running"
            machine.destroy()
            golden.close()

    in_child(body)


def _state(hv: Hypervisor, machine: Machine) -> str:
    from vm_kernel.vm.monitor import Monitor

    assert hv is not None
    return str(Monitor(machine._domain).command("query-status")["status"])


def test_ten_clones_at_once(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv, ThreadPoolExecutor(10) as threads:
            golden = place.snapshot(hv, tiny)
            machines = list(threads.map(lambda number: clone(hv, golden, f"vm-{number}"), range(10)))
            assert all(machine.alive for machine in machines)
            assert len({machine.pid for machine in machines}) == 10
            assert len({machine.uuid for machine in machines}) == 10
            generations = {_generation(machine) for machine in machines}
            assert len(generations) == 10, "every clone has a generation id of its own"
            list(threads.map(Machine.destroy, machines))
            assert not any(machine.alive for machine in machines)
            assert files_below(place.run) == []
            golden.close()

    in_child(body)


def _generation(machine: Machine) -> str | None:
    return ElementTree.fromstring(machine._domain.XMLDesc()).findtext("genid")


def test_a_qemu_that_is_killed_is_noticed_and_cleared_away(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, tiny)
            machine, other = clone(hv, golden, "vm-killed"), clone(hv, golden, "vm-other")
            assert not select.select([machine], [], [], 0)[0]
            os.kill(machine.pid, signal.SIGKILL)
            assert select.select([machine], [], [], 2.0)[0], "its descriptor says so"
            assert not machine.alive
            machine.destroy()
            assert not Path(f"/proc/{machine.pid}").exists()
            assert other.alive
            clone(hv, golden, "vm-killed").destroy()
            other.destroy()
            assert files_below(place.run) == []
            golden.close()

    in_child(body)


def test_any_number_of_threads_may_destroy_a_machine(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv, ThreadPoolExecutor(8) as threads:
            golden = place.snapshot(hv, tiny)
            machine = clone(hv, golden, "vm-1")
            list(threads.map(lambda _: machine.destroy(), range(8)))
            assert files_below(place.run) == []
            golden.close()

    in_child(body)


def test_a_shell_that_was_started_ahead_becomes_a_machine_quickly(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, tiny)
            unused, shell = prepare(hv, golden, "vm-unused"), prepare(hv, golden, "vm-shell")
            assert unused.alive
            machine = shell.restore()
            assert machine.alive
            assert machine.timings["restore"] < 2000
            unused.destroy()
            machine.destroy()
            assert files_below(place.run) == []
            golden.close()

    in_child(body)


def test_a_clone_that_fails_leaves_nothing(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, tiny)
            whole = golden.state
            golden.state = whole[: len(whole) // 2]
            with pytest.raises(CloneError, match="could not be restored"):
                clone(hv, golden, "vm-half")
            golden.state = b"nonsense"
            with pytest.raises(CloneError, match="could not be restored"):
                clone(hv, golden, "vm-nonsense")
            with pytest.raises(CloneError, match="cannot be a VM's name"):
                clone(hv, golden, "../etc")
            golden.state = whole
            shell = prepare(hv, golden, "vm-dead")
            os.kill(shell.pid, signal.SIGKILL)
            with pytest.raises(CloneError, match="could not be restored"):
                shell.restore()
            clone(hv, golden, "vm-half").destroy()
            golden.close()
            with pytest.raises(CloneError, match="could not be started"):
                clone(hv, golden, "vm-late")
            assert files_below(place.run) == []

    in_child(body)


def test_a_qemu_that_dies_in_the_middle_of_a_question_keeps_nobody_waiting(place: Place, tiny: VMSpec) -> None:
    """libvirt holds the one who asks until the zombie has gone, up to 40 s: somebody else must take it away."""

    def ask(shell: PreparedMachine, asked: threading.Event) -> None:
        from vm_kernel.vm.monitor import Monitor

        with pytest.raises(VMError):
            while True:
                Monitor(shell._domain).command("query-status")
                asked.set()

    def body() -> None:
        with place.hypervisor() as hv, ThreadPoolExecutor(1) as threads:
            golden = place.snapshot(hv, tiny)
            for _ in range(8):
                shell, asked = prepare(hv, golden, "vm-1"), threading.Event()
                asking = threads.submit(ask, shell, asked)
                assert asked.wait(20.0)
                os.kill(shell.pid, signal.SIGKILL)
                asking.result(20.0)
                shell.destroy()
            golden.close()

    in_child(body)
