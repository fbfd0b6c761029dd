"""What the host can do is found out by trying, once, and said in a sentence."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ended, wait_until
from tests.vm.child import Child, in_child
from vm_kernel.errors import ConfigError, HostError
from vm_kernel.image.store import open_image
from vm_kernel.vm import host
from vm_kernel.vm.kvm_probe import probe


def test_versions() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", host.qemu_version())
    assert re.fullmatch(r"\d+\.\d+\.\d+", host.libvirt_version())
    assert host.qemu_binary().name == "qemu-system-x86_64"


def test_a_missing_qemu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HostError, match="not installed") as caught:
        host.qemu_binary()
    assert "qemu-system-x86" in caught.value.hint


def test_the_probe_knows_a_guest_that_runs() -> None:
    works, reason = probe(host.qemu_binary(), open_image("default").kernel, "tcg", "max")
    assert works, reason
    assert reason.startswith("A guest ran under TCG")


def test_the_probe_says_why_a_guest_does_not_run(tmp_path: Path) -> None:
    kernel = open_image("default").kernel
    assert probe(host.qemu_binary(), tmp_path / "none", "tcg", "max")[1].endswith("is missing.")
    works, reason = probe(host.qemu_binary(), kernel, "tcg", "no-such-cpu")
    assert not works
    assert "QEMU said: " in reason


def test_an_accelerator_is_chosen_once_and_remembered(tmp_path: Path) -> None:
    kernel, cache = open_image("default").kernel, tmp_path / "probe.json"
    started = time.monotonic()
    found = host.resolve_accelerator("auto", cache, kernel)
    probed_s = time.monotonic() - started
    assert found.reason.endswith(".")
    started = time.monotonic()
    assert host.resolve_accelerator("auto", cache, kernel) == found
    assert time.monotonic() - started < probed_s / 2
    if found.kind == "tcg":
        assert "not a security boundary" in found.reason
        assert found.hint
        with pytest.raises(HostError, match="KVM was asked for") as caught:
            host.resolve_accelerator("kvm", cache, kernel)
        assert found.hint in caught.value.hint
    else:
        assert host.resolve_accelerator("kvm", cache, kernel) == found


def test_what_was_remembered_of_another_host_is_not_believed(tmp_path: Path) -> None:
    kernel, cache = open_image("default").kernel, tmp_path / "probe.json"
    found = host.resolve_accelerator("auto", cache, kernel)
    for text in (json.dumps({"facts": {"kernel": "1.0"}, "works": True, "reason": "?"}), "[]", "{", "\0"):
        cache.write_text(text)
        assert host.resolve_accelerator("auto", cache, kernel).kind == found.kind


def test_an_answer_that_cannot_be_kept_is_an_answer_all_the_same(tmp_path: Path) -> None:
    kernel = open_image("default").kernel
    found = host.resolve_accelerator("auto", tmp_path / "probe.json", kernel)
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file" / "probe.json", Path("/proc/probe.json")):
        assert host.resolve_accelerator("auto", cache, kernel).kind == found.kind
    assert not list(tmp_path.glob("*.*[0-9]")), "no half-written file is left"


def test_an_answer_is_forgotten_when_something_changes_that_it_depends_on(tmp_path: Path) -> None:
    cache = tmp_path / "probe.json"
    facts = {"kernel": "6.1", "qemu": "7.2", "cpu": "A", "device": "660", "modules": "kvm_amd.npt=1"}
    host._remember(cache, facts, (True, "It ran."))
    assert host._remembered(cache, facts) == (True, "It ran.")
    for name in facts:
        assert host._remembered(cache, facts | {name: "another"}) is None
    for text in (json.dumps({"facts": facts, "works": "yes", "reason": ""}), "[" * 100_000, ""):
        cache.write_text(text)
        assert host._remembered(cache, facts) is None


def test_a_probe_that_is_killed_leaves_no_guest(tmp_path: Path) -> None:
    kernel = open_image("default").kernel
    prober = Child(probe, host.qemu_binary(), kernel, "tcg", "max")

    def guests() -> list[int]:
        return [child.pid for child in psutil.Process(prober.pid).children() if "qemu" in child.name()]

    wait_until(lambda: bool(guests()), 60.0, "the probe has a guest")
    (guest,) = guests()
    prober.kill()
    wait_until(lambda: ended(guest), 60.0, "its guest has ended")


def test_tcg_may_be_demanded_and_nonsense_may_not(tmp_path: Path) -> None:
    assert host.resolve_accelerator("tcg", tmp_path / "probe.json", tmp_path).kind == "tcg"
    with pytest.raises(ConfigError, match="warp"):
        host.resolve_accelerator("warp", tmp_path / "probe.json", tmp_path)
    with pytest.raises(ConfigError, match="pigeon"):
        host.resolve_transport("pigeon")


def test_the_transport_is_vsock_only_where_its_device_can_be_opened() -> None:
    def body() -> None:
        usable = os.access("/dev/vhost-vsock", os.R_OK | os.W_OK)
        assert host.resolve_transport("auto").kind == ("vsock" if usable else "virtio-serial")
        assert host.resolve_transport("virtio-serial").kind == "virtio-serial"
        if not usable:
            assert host.resolve_transport("auto").hint
            with pytest.raises(HostError, match="vsock was asked for") as caught:
                host.resolve_transport("vsock")
            assert "c.PoolConfig.transport = 'auto'" in caught.value.hint

    in_child(body)
