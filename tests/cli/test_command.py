"""The command itself: versions, usage, and installing the kernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import vm_kernel
from vm_kernel import __version__


def test_it_tells_its_version() -> None:
    assert vm_kernel("--version").stdout.strip() == f"vm-kernel {__version__}"


@pytest.mark.parametrize("words", [(), ("nonsense",), ("pool",), ("run",), ("run", "x.ipynb", "--timeout", "0")])
def test_wrong_usage_is_status_2_and_says_how_it_is_used(words: tuple[str, ...]) -> None:
    done = vm_kernel(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: vm-kernel")


def test_install_writes_a_kernelspec_with_logos(vm_home: Path, tmp_path: Path) -> None:
    done = vm_kernel("install", "--prefix", tmp_path, "--name", "sandbox-2", "--display-name", "Second Sandbox")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "share/jupyter/kernels/sandbox-2"
    assert str(folder) in done.stdout
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec["display_name"] == "Second Sandbox"
    assert "--profile" not in spec["argv"]
    assert {"logo-32x32.png", "logo-64x64.png", "logo-svg.svg"} <= {path.name for path in folder.iterdir()}


def test_each_profile_can_have_a_kernel_of_its_own(vm_home: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "vm_kernel_config.py").write_text("c.PoolConfig.profiles = {'big': {'memory_mib': 1024}, 'two': {}}")
    kernels = tmp_path / "share/jupyter/kernels"
    done = vm_kernel("install", "--prefix", tmp_path, "--profile", "big", JUPYTER_CONFIG_DIR=str(config))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in kernels.iterdir()] == ["vm-sandbox-big"]  # the default's name is left alone
    spec = json.loads((kernels / "vm-sandbox-big/kernel.json").read_text())
    assert (spec["argv"][-2:], spec["display_name"]) == (["--profile", "big"], "VM Sandbox (big)")

    done = vm_kernel("install", "--prefix", tmp_path, "--all-profiles", JUPYTER_CONFIG_DIR=str(config))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in kernels.iterdir()) == ["vm-sandbox", "vm-sandbox-big", "vm-sandbox-two"]

    done = vm_kernel("install", "--prefix", tmp_path, "--all-profiles", "--name", "x", JUPYTER_CONFIG_DIR=str(config))
    assert done.returncode == 1
    assert "-> Leave out --name" in done.stderr


def test_a_kernel_for_an_unknown_profile_is_not_installed(vm_home: Path, tmp_path: Path) -> None:
    done = vm_kernel("install", "--prefix", tmp_path, "--profile", "huge")
    assert done.returncode == 1
    assert "no profile 'huge'" in done.stderr
    assert "-> " in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_broken_configuration_file_is_named_with_its_line(vm_home: Path, tmp_path: Path) -> None:
    (tmp_path / "vm_kernel_config.py").write_text("c.PoolConfig.min_warm = 1\nc.PoolConfig.max_vms = = 2\n")
    done = vm_kernel("install", "--prefix", tmp_path / "prefix", JUPYTER_CONFIG_DIR=str(tmp_path))
    assert done.returncode == 1
    assert f"{tmp_path / 'vm_kernel_config.py'}, line 2" in done.stderr
    assert "Traceback" not in done.stderr
