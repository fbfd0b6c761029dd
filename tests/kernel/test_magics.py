"""Host magics without a session: which cells they are, and what they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from vm_kernel.kernel.hostcells import HostMagic, find_magic
from vm_kernel.kernel.magics import evaluate, render_status, render_vm
from vm_kernel.pool.client import PoolConnection
from vm_kernel.pool.protocol import VMFacts

FACTS = VMFacts(
    name="vm-1", profile="default", accelerator="tcg", transport="virtio-serial", memory_mib=384, vcpus=1,
    image="<script>", image_digest="ab" * 32, golden_key="cd" * 32, created_at="2026-01-02T03:04:05+00:00",
    qemu_version="7.2.1", libvirt_version="9.0.0", warm_ms=321.5, acquire_ms=1.234,
    accelerator_reason="/dev/kvm is <missing>.",
)  # fmt: skip

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "pid": 7,
    "uptime_s": 3725.0,
    "accelerator": {"kind": "tcg", "reason": "no KVM"},
    "transport": {"kind": "virtio-serial", "reason": ""},
    "host_memory_available_mib": 12345,
    "acquire_ms": {"count": 4, "p50": 1.5, "p95": 2500.0, "p99": 2600.0},
    "clone_ms": {"count": 6, "p50": 300.0, "p95": 400.0, "p99": 400.0},
    "totals": {"leases": 4, "clones": 6, "failures": 1},
    "profiles": [
        {"name": "<b>x</b>", "image": "default", "memory_mib": 384, "vcpus": 1, "min_warm": 2, "max_vms": 8, "warm": 1,
         "leased": 2, "booting": 1, "waiting": 0, "state": "broken", "detail": "a & b", "golden_key": None,
         "allow": ["a.org", "b.org", "*.c.org:81", "<d>"]},
    ],
    "vms": [
        {"name": "vm-1", "profile": "p", "state": "leased", "age_s": 61.0, "unique_memory_mib": 33.25,
         "lease": {"pid": 9, "since_s": 5.0, "kernel_id": "k"}, "cpu_s": 12.5, "executions": 3,
         "flags": [{"kind": "cpu", "text": "12 s of CPU <in> the last minute", "since": "2026-01-02T03:04:05"}]},
        {"name": "vm-2", "profile": "p", "state": "warm", "age_s": 2.0, "unique_memory_mib": None, "lease": None},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "magic"),
    [
        ("%pool_status", HostMagic("pool_status", "", False)),
        ("\n\n  %vm_info   --json  \n \n", HostMagic("vm_info", "--json", False)),
        ("%vm_info\t--json", HostMagic("vm_info", "--json", False)),
        ("%pool_status\nx = 1", HostMagic("pool_status", "", True)),
        ("%pool_status --json\n# remark", HostMagic("pool_status", "--json", True)),
        ("%%pool_status", None),
        ("%pool_statusx", None),
        ("%pool", None),
        ("% pool_status", None),
        ("x = 1\n%pool_status", None),
        ("# %pool_status", None),
        ("pool_status", None),
        ("", None),
        (None, None),
        (5, None),
    ],
)
def test_a_cell_whose_first_line_is_a_host_magic_is_the_hosts(code: object, magic: HostMagic | None) -> None:
    assert find_magic(code) == magic


def test_the_status_is_shown_as_text_and_as_html() -> None:
    shown = render_status(STATUS, FACTS)
    text, page = shown["text/plain"], shown["text/html"]
    for words in (
        "up 1 h 2 min",
        "1.5 ms / 2.50 s / 2.60 s (4)",
        "12,345 MiB",
        "33.2 MiB",
        "1 min 1 s",
        "broken",
        "4, 6, 1",
        "12.5 s",
        "a.org, b.org, *.c.org:81 and 1 more",
    ):
        assert words in text
        assert words in page
    assert "this session for 5 s" in text
    assert re.search(r"vm-2 +p +warm +2 s +–", text)
    assert re.search(r"vm-1 +12 s of CPU <in> the last minute +2026-01-02", text)
    assert "&lt;in&gt;" in page
    assert "svg" not in page, "there are no samples"
    assert "a & b" in text
    assert "a &amp; b" in page
    assert "<b>" not in page
    assert "style" not in page
    assert "<script" not in page


def test_the_last_minutes_are_shown_as_charts() -> None:
    columns = ("warm", "leased", "waiting", "host_mib", "own_mib", "acquire_ms")
    page = render_status(STATUS | {"history": {"every_s": 2.0} | {name: [1, 2] for name in columns}})["text/html"]
    assert page.startswith("<p><svg ")
    assert page.count("<svg") == 1


def test_a_status_with_nothing_in_it_is_shown_too() -> None:
    assert "service" in render_status({})["text/plain"]


def test_a_vm_is_shown() -> None:
    shown = render_vm(FACTS)
    assert "384 MiB" in shown["text/plain"]
    assert "322 ms" in shown["text/plain"]
    assert "&lt;script&gt; (abababababab)" in shown["text/html"]
    assert "tcg: /dev/kvm is <missing>." in shown["text/plain"], "why that accelerator"


@pytest.mark.parametrize("arguments", ["--nosuch", "x", "--json=1", "'", "--help"])
@pytest.mark.parametrize("name", ["pool_status", "vm_info"])
def test_a_wrong_option_gets_the_usage(name: str, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = evaluate(name, arguments, None)
    assert shown.keys() == {"text/plain"}
    assert shown["text/plain"].startswith(f"usage: %{name} [--help] [--json]")
    assert capsys.readouterr() == ("", "")


def test_without_a_service_the_status_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VM_KERNEL_HOME", str(tmp_path))
    shown = evaluate("pool_status", "", None)
    assert "vm-kernel pool start" in shown["text/plain"]
    assert list(tmp_path.iterdir()) == [], "asking does not start it"


def test_the_magics_load_into_any_ipython_session(pool: PoolConnection) -> None:
    # without a history, whose database would be written when the test's home has gone
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.run_line_magic("load_ext", "vm_kernel")
    with capture_output() as captured:
        shell.run_line_magic("pool_status", "")
        shell.run_line_magic("vm_info", "")
        shell.run_line_magic("vm_info", "--nosuch")
    InteractiveShell.clear_instance()
    said = [output.data["text/plain"] for output in captured.outputs]
    assert "acquire p50 / p95 / p99" in said[0]
    assert "no virtual machine" in said[1]
    assert said[2].startswith("usage: %vm_info")
