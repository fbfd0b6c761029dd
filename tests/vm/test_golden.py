"""Golden snapshots: built once, loaded again, never broken, and nothing half-made."""

from __future__ import annotations

import hashlib
import mmap
import os
import resource
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.vm.child import in_child
from tests.vm.conftest import tiny_guest
from tests.vm.places import Place, files_below
from vm_kernel.errors import GoldenError, HostError
from vm_kernel.vm.golden import golden_key, load_or_build, prune
from vm_kernel.vm.machine import clone
from vm_kernel.vm.spec import VMSpec


def silent(_stage: str, _fraction: float) -> None:
    """Progress that nobody reads."""


def test_a_snapshot_is_built_once_and_then_loaded(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        stages: list[tuple[str, float]] = []
        with place.hypervisor() as hv:
            built = load_or_build(hv, tiny, place.golden, lambda *seen: stages.append(seen))
            assert built.built
            assert built.key == golden_key(tiny, hv.facts())
            assert built.folder == place.golden / built.key
            assert files_below(place.run) == [], "the template left something"
            built.close()
            loaded = load_or_build(hv, tiny, place.golden, silent)
            assert not loaded.built
            assert loaded.state == built.state
            clone(hv, loaded, "vm-loaded").destroy()
            loaded.close()
            loaded.close()
        fractions = [fraction for _, fraction in stages]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0

    in_child(body)


def test_a_snapshot_built_anew_has_another_build_id_and_replaces_the_old_one(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            old = load_or_build(hv, tiny, place.golden, silent)
            new = load_or_build(hv, tiny, place.golden, silent, not_before=datetime.now(UTC))
            assert (new.built, new.key) == (True, old.key)
            assert new.build_id != old.build_id
            assert old.created_at < new.created_at
            assert [entry.name for entry in place.golden.iterdir()] == [new.key]
            clone(hv, old, "vm-old").destroy()
            old.close()
            loaded = load_or_build(hv, tiny, place.golden, silent)
            assert (loaded.build_id, loaded.created_at) == (new.build_id, new.created_at)
            loaded.close()
            new.close()

    in_child(body)


def test_a_snapshot_that_somebody_holds_is_closed_when_it_is_released(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = load_or_build(hv, tiny, place.golden, silent)
            golden.hold()
            golden.close()
            clone(hv, golden, "vm-held").destroy()
            golden.release()
            assert golden.memfd == -1
            with pytest.raises(GoldenError, match="given up"):
                golden.hold()

    in_child(body)


def test_nobody_can_write_to_the_memory_of_a_snapshot(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = place.snapshot(hv, tiny)
            with pytest.raises(PermissionError):
                os.pwrite(golden.memfd, b"x", 0)
            before = _content(golden.memfd)
            machine = clone(hv, golden, "vm-writer")
            time.sleep(0.5)
            machine.destroy()
            assert _content(golden.memfd) == before
            golden.close()

    in_child(body)


def _content(memfd: int) -> str:
    with mmap.mmap(memfd, 0, prot=mmap.PROT_READ) as ram:
        return hashlib.sha256(ram).hexdigest()


@pytest.mark.parametrize("damage", ["flip", "truncate", "no state", "no manifest", "garbage", "no ram"])
def test_a_damaged_snapshot_is_built_anew(place: Place, tiny: VMSpec, damage: str) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            golden = load_or_build(hv, tiny, place.golden, silent)
            golden.close()
            _damage(golden.folder, damage)
            again = load_or_build(hv, tiny, place.golden, silent)
            assert again.built
            clone(hv, again, "vm-again").destroy()
            again.close()

    in_child(body)


def _damage(folder: Path, how: str) -> None:
    ram = folder / "ram"
    if how == "flip":
        with ram.open("r+b") as file:
            file.seek(1 << 20)
            byte = file.read(1)
            file.seek(1 << 20)
            file.write(bytes([byte[0] ^ 1]))
    elif how == "truncate":
        os.truncate(ram, 100 << 20)
    elif how == "garbage":
        (folder / "manifest.json").write_text("[1, 2")
    else:
        (folder / {"no state": "state", "no manifest": "manifest.json", "no ram": "ram"}[how]).unlink()


def test_a_full_disk_is_reported_and_nothing_half_made_is_left(place: Place, tiny: VMSpec) -> None:
    def limit_files(stage: str, _fraction: float) -> None:
        if stage.startswith("writing"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, resource.RLIM_INFINITY))

    def body() -> None:
        with place.hypervisor() as hv:
            with pytest.raises(HostError, match="cannot be kept") as caught:
                load_or_build(hv, tiny, place.golden, limit_files)
            assert "VM_KERNEL_HOME" in caught.value.hint
            assert list(place.golden.iterdir()) == []
            assert files_below(place.run) == []
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            load_or_build(hv, tiny, place.golden, silent).close()

    in_child(body)


def test_a_guest_that_fails_says_why(place: Place, failing: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv:
            with pytest.raises(GoldenError, match="there is no kernel"):
                load_or_build(hv, failing, place.golden, silent)
            assert list(place.golden.iterdir()) == []
            assert files_below(place.run) == []

    in_child(body)


def test_a_guest_that_does_not_boot_says_why(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        nothing = place.run.parent / "nothing"
        nothing.write_bytes(b"")
        with place.hypervisor() as hv:
            with pytest.raises(GoldenError, match="Kernel panic"):
                load_or_build(hv, replace(tiny, initrd=nothing, agent_digest="none"), place.golden, silent)
            with pytest.raises(GoldenError, match="could not be started"):
                load_or_build(hv, replace(tiny, kernel=nothing, agent_digest="no kernel"), place.golden, silent)
            assert files_below(place.run) == []

    in_child(body)


def test_a_vm_larger_than_the_host_is_refused_at_once(place: Place, tiny: VMSpec) -> None:
    def body() -> None:
        with place.hypervisor() as hv, pytest.raises(HostError, match="more memory than this host has free"):
            load_or_build(hv, replace(tiny, memory_mib=1 << 20), place.golden, silent)

    in_child(body)


def test_the_key_depends_on_everything_that_the_state_depends_on(tiny: VMSpec, shared: Path) -> None:
    facts = {"qemu": "7.2", "libvirt": "9.0"}
    key = golden_key(tiny, facts)
    others = [
        golden_key(replace(tiny, image_digest="another"), facts),
        golden_key(replace(tiny, agent_digest="another"), facts),
        golden_key(replace(tiny, memory_mib=256), facts),
        golden_key(replace(tiny, vcpus=2), facts),
        golden_key(replace(tiny, accelerator="kvm"), facts),
        golden_key(replace(tiny, transport="vsock"), facts),
        golden_key(tiny, facts | {"qemu": "8.0"}),
        golden_key(tiny, facts | {"libvirt": "11.3"}),
    ]
    assert len({key, *others}) == 1 + len(others)
    assert golden_key(tiny_guest(shared, b"", "tiny"), facts) == key, "where the files are does not matter"


def test_snapshots_that_nothing_can_use_are_pruned(tmp_path: Path) -> None:
    for name in ("wanted", "stale", ".killed-4194304", f".building-{os.getpid()}"):
        (tmp_path / name).mkdir()
    assert prune(tmp_path, {"wanted"}) == [".killed-4194304", "stale"]
    assert prune(tmp_path / "missing", set()) == []
