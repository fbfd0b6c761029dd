"""``vm-kernel doctor``: what it finds on this machine, and on one that lacks something."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.cli.command import vm_kernel

CHECKS = [
    "configuration",
    "QEMU",
    "libvirt",
    "image",
    "accelerator",
    "transport",
    "memory",
    "network of VMs",
    "pool service",
    "golden snapshot",
    "kernelspec",
]


def findings(**environment: str) -> dict[str, dict[str, str]]:
    """The checks by name."""
    done = vm_kernel("doctor", "--json", **environment)
    report = json.loads(done.stdout)
    found = {check["name"]: check for check in report["checks"]}
    failed = any(check["level"] == "fail" for check in found.values())
    assert report["ok"] is not failed
    assert done.returncode == int(failed)
    return found


def test_a_machine_on_which_notebooks_run_passes(kernelspec: str) -> None:
    found = findings()
    assert list(found) == CHECKS
    assert not [check for check in found.values() if check["level"] == "fail"]
    assert all(check["hint"] for check in found.values() if check["level"] == "warn")


def test_a_person_gets_a_table(kernelspec: str) -> None:
    done = vm_kernel("doctor", COLUMNS="200")
    assert done.returncode == 0, done.stdout
    assert [line.split("  ")[1].strip() for line in done.stdout.splitlines() if line[:4].strip() in ("ok", "warn")]
    assert "qemu-system-x86_64" in done.stdout


def test_what_is_missing_is_named_with_what_to_do(kernelspec: str, tmp_path: Path) -> None:
    found = findings(
        VM_KERNEL_IMAGES=str(tmp_path / "images"),
        PATH=str(tmp_path),
        JUPYTER_DATA_DIR=str(tmp_path),
        JUPYTER_PATH=str(tmp_path),
    )
    assert found["QEMU"]["level"] == "fail"
    assert "qemu-system-x86" in found["QEMU"]["hint"]
    assert found["image"]["level"] == "fail"
    assert "vm-kernel image build" in found["image"]["hint"]
    assert found["accelerator"]["level"] == "warn"


def test_a_broken_configuration_does_not_stop_the_other_checks(kernelspec: str, tmp_path: Path) -> None:
    (tmp_path / "vm_kernel_config.py").write_text("c.PoolConfig.max_vms = 'many'")
    found = findings(JUPYTER_CONFIG_DIR=str(tmp_path))
    assert found["configuration"]["level"] == "fail"
    assert "vm_kernel_config.py" in found["configuration"]["summary"]
    assert list(found) == CHECKS


def test_what_vms_may_reach_is_told(kernelspec: str, tmp_path: Path) -> None:
    (tmp_path / "vm_kernel_config.py").write_text(
        "c.PoolConfig.profiles = {'pip': {'allow': ['pypi.org'], 'allow_private': ['10.0.0.0/8']}}"
    )
    check = findings(JUPYTER_CONFIG_DIR=str(tmp_path))["network of VMs"]
    assert (check["level"], check["summary"]) == ("warn", "pip: pypi.org; also at private addresses in 10.0.0.0/8")


def test_a_kernel_whose_profile_has_gone_is_named(kernelspec: str, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    shutil.copytree(Path(os.environ["JUPYTER_DATA_DIR"], "kernels"), kernels)
    found = json.loads((kernels / kernelspec / "kernel.json").read_text())
    found["argv"] += ["--profile", "of-last-year"]
    (kernels / "old").mkdir()
    (kernels / "old" / "kernel.json").write_text(json.dumps(found))
    check = findings(JUPYTER_PATH=str(tmp_path))["kernelspec"]
    assert check["level"] == "warn"
    assert "no profile 'of-last-year'" in check["summary"]
    assert "jupyter kernelspec remove old" in check["hint"]
