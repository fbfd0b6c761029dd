"""Checkpoints of a clone: what it has changed is saved and brought back, and nothing is left when that fails."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.child import in_child
from tests.vm.places import Place, files_below
from vm_kernel.errors import CheckpointError, CloneError
from vm_kernel.vm import checkpoints
from vm_kernel.vm.checkpoints import Checkpoint
from vm_kernel.vm.golden import GoldenSnapshot
from vm_kernel.vm.machine import Machine, clone, prepare
from vm_kernel.vm.spec import VMSpec

ROOM = 1 << 30


def memory_of(machine: Machine, golden: GoldenSnapshot) -> dict[int, bytes]:
    """The pages of guest memory that a VM has for itself, by their place in it."""
    runs = checkpoints._own_runs(machine.pid, golden)
    found = {}
    with Path(f"/proc/{machine.pid}/mem").open("rb", buffering=0) as memory:
        for run, (address, size) in zip(runs, checkpoints._transfers(machine.pid, golden, runs), strict=True):
            content = os.pread(memory.fileno(), size, address)
            found |= {run.offset + at: content[at : at + 4096] for at in range(0, size, 4096)}
    return found


def scribble(machine: Machine, golden: GoldenSnapshot, pages: int) -> None:
    """Fill as many pages as that in a row, which the guest has never used, with what is nowhere else."""
    runs = checkpoints._own_runs(machine.pid, golden)
    address, size = max(checkpoints._transfers(machine.pid, golden, runs), key=lambda transfer: transfer[1])
    with Path(f"/proc/{machine.pid}/mem").open("r+b", buffering=0) as memory:
        zeros = os.pread(memory.fileno(), size, address).index(bytes((pages + 1) * 4096))
        start = address + -(-zeros // 4096) * 4096
        assert os.pwrite(memory.fileno(), os.urandom(pages * 4096), start) == pages * 4096


def test_a_checkpoint_has_every_page_that_the_clone_has_changed(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, tiny)
            machine = clone(hv, golden, "vm-1")
            os.kill(machine.pid, signal.SIGSTOP)  # so that it changes nothing between the two looks
            before = memory_of(machine, golden)
            os.kill(machine.pid, signal.SIGCONT)
            saved = checkpoints.save(machine, golden, place.run / "c", ROOM)
            assert machine.alive
            assert saved.size >= 4096 * len(before) > 0
            assert 0 < saved.pause_ms < 5000
            assert checkpoints.load(saved.folder, check=True) == saved
            again = checkpoints.restore(prepare(hv, golden, "vm-2"), golden, saved)
            assert again.alive
            assert machine.alive, "the one beside it is untouched"
            assert memory_of(again, golden).keys() >= before.keys()
            twice = checkpoints.save(again, golden, place.run / "d", ROOM)
            assert twice.size >= saved.size
            for checkpoint in (saved, twice):
                checkpoint.delete()
            for vm in (machine, again):
                vm.destroy()
            assert files_below(place.run) == []
            golden.close()

    in_child(body)


def test_a_vm_that_shares_no_memory_has_checkpoints_no_larger_for_it(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, replace(tiny, share_memory=False))
            machine = clone(hv, golden, "vm-1")
            assert sum(run.size for run in checkpoints._own_runs(machine.pid, golden)) == tiny.memory_mib << 20
            assert machine.unique_memory() >= tiny.memory_mib << 20
            scribble(machine, golden, pages=512)
            saved = checkpoints.save(machine, golden, place.run / "c", ROOM)
            assert 2 << 20 < saved.size < 32 << 20
            os.kill(machine.pid, signal.SIGSTOP)
            again = checkpoints.restore(prepare(hv, golden, "vm-2"), golden, saved)
            os.kill(again.pid, signal.SIGSTOP)
            theirs, ours = memory_of(machine, golden), memory_of(again, golden)
            different = sum(theirs[place] != ours[place] for place in theirs)
            assert theirs.keys() == ours.keys()
            assert different * 4096 < saved.size, "but for what both have done since"
            saved.delete()
            for vm in (machine, again):
                vm.destroy()
            golden.close()

    in_child(body)


def test_a_checkpoint_that_fails_leaves_nothing_and_the_vm_runs_on(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, tiny)
            machine = clone(hv, golden, "vm-1")
            with pytest.raises(CheckpointError, match="left for checkpoints"):
                checkpoints.save(machine, golden, place.run / "c", 4096)
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))  # as a full disk: writes fail from there on
            with pytest.raises(CheckpointError, match="no room for checkpoints"):
                checkpoints.save(machine, golden, place.run / "c", ROOM)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert not (place.run / "c").exists()
            saved = checkpoints.save(machine, golden, place.run / "c", ROOM)
            os.kill(machine.pid, signal.SIGKILL)
            with pytest.raises(CheckpointError, match="The checkpoint failed"):
                checkpoints.save(machine, golden, place.run / "d", ROOM)
            assert not (place.run / "d").exists()
            machine.destroy()
            saved.delete()
            golden.close()

    in_child(body)


def damage(saved: Checkpoint, name: str, content: bytes) -> None:
    (saved.folder / name).write_bytes(content)


def test_what_does_not_fit_or_is_damaged_is_refused_and_nothing_is_left(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, tiny)
            machine = clone(hv, golden, "vm-1")
            saved = checkpoints.save(machine, golden, place.run / "c", ROOM)
            whole = {path.name: path.read_bytes() for path in saved.folder.iterdir()}
            golden.build_id, build_id = "another", golden.build_id
            with pytest.raises(CheckpointError, match="another golden snapshot"):
                checkpoints.restore(prepare(hv, golden, "vm-2"), golden, saved)
            golden.build_id = build_id
            for name, content, error in (
                ("runs", b"[[0, 4096]]", CheckpointError),
                ("runs", b"[[%d, 4096]]" % (1 << 40), CheckpointError),
                ("runs", b"nonsense", CheckpointError),
                ("pages", whole["pages"][:-4096], CheckpointError),
                ("state", whole["state"][:1000], CloneError),
                ("state", b"nonsense", CloneError),
            ):
                damage(saved, name, content)
                with pytest.raises(error):
                    checkpoints.restore(prepare(hv, golden, "vm-2"), golden, saved)
                with pytest.raises(CheckpointError, match="cannot be used"):
                    checkpoints.load(saved.folder, check=True)
                damage(saved, name, whole[name])
            for text in (b"", b"[]", b"{}", whole["manifest.json"].replace(b'"format": 1', b'"format": 2')):
                damage(saved, "manifest.json", text)
                with pytest.raises(CheckpointError, match="cannot be used"):
                    checkpoints.load(saved.folder, check=False)
            damage(saved, "manifest.json", whole["manifest.json"])
            machine.destroy()
            checkpoints.restore(prepare(hv, golden, "vm-2"), golden, saved).destroy()
            assert files_below(place.run) == []
            saved.delete()
            golden.close()

    in_child(body)
