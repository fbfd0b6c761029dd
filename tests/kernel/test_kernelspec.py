"""The kernelspec that ``vm-kernel install`` writes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpec

from vm_kernel.errors import ConfigError, HostError
from vm_kernel.kernel.spec import install, template_dir


def test_it_has_what_jupyter_and_lab_look_for(tmp_path: Path) -> None:
    folder = install(prefix=str(tmp_path))
    assert folder == tmp_path / "share" / "jupyter" / "kernels" / "vm-sandbox"
    spec = KernelSpec.from_resource_dir(str(folder))
    assert spec.argv == [sys.executable, "-P", "-m", "vm_kernel", "-f", "{connection_file}"]
    assert (spec.display_name, spec.language, spec.interrupt_mode) == ("VM Sandbox", "python", "message")
    assert spec.metadata == {"debugger": True, "supported_encryption": ["curve"]}
    for size in (32, 64):
        logo = (folder / f"logo-{size}x{size}.png").read_bytes()
        assert logo[:8] == b"\x89PNG\r\n\x1a\n"
        assert int.from_bytes(logo[16:20], "big") == size
    assert (folder / "logo-svg.svg").read_text().startswith("<svg")


def test_names_and_profile_are_the_users_choice(tmp_path: Path) -> None:
    install(prefix=str(tmp_path), name="big", profile="big")
    folder = install(prefix=str(tmp_path), name="big", display_name="Big VM", profile="big")
    spec = KernelSpec.from_resource_dir(str(folder))
    assert (folder.name, spec.display_name) == ("big", "Big VM")
    assert spec.argv[-2:] == ["--profile", "big"]
    assert (
        KernelSpec.from_resource_dir(str(install(prefix=str(tmp_path), profile="x"))).display_name == "VM Sandbox (x)"
    )


def test_what_cannot_be_installed_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Invalid kernel name"):
        install(prefix=str(tmp_path), name="a b")
    (tmp_path / "share").write_text("a file is in the way")
    with pytest.raises(HostError, match="cannot be written"):
        install(prefix=str(tmp_path))


def test_the_template_is_complete() -> None:
    assert {path.name for path in template_dir().iterdir()} == {
        "kernel.json",
        "logo-32x32.png",
        "logo-64x64.png",
        "logo-svg.svg",
    }
