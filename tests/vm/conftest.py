"""A place for VMs, and the smallest guest that can be forked: a kernel and a program that prints that it is warm."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.vm.places import Place
from vm_kernel.config import PoolConfig
from vm_kernel.image.store import open_image
from vm_kernel.vm.spec import VMSpec
from vm_kernel.vm.tiny_guest import initramfs


def _folder(prefix: str) -> Path:
    """A temporary folder of the user as whom VMs are run."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    if os.geteuid() == 0:
        user = pwd.getpwnam(PoolConfig().user)
        os.chown(folder, user.pw_uid, user.pw_gid)
    return folder


@pytest.fixture(scope="session")
def shared() -> Iterator[Path]:
    """Golden snapshots and guests that several tests use."""
    folder = _folder("vmk-shared-")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tiny(shared: Path) -> VMSpec:
    """A guest that is warm some seconds after its start and never does anything."""
    return tiny_guest(shared, b"vm-kernel: warm\n", "tiny")


@pytest.fixture(scope="session")
def failing(shared: Path) -> VMSpec:
    """A guest whose agent says that it failed."""
    return tiny_guest(shared, b"vm-kernel: failed: there is no kernel\n", "failing")


@pytest.fixture
def place(shared: Path) -> Iterator[Place]:
    """An empty run folder and a golden folder. Nothing may be left when the test ends."""
    folder = _folder("vmk-")
    yield Place(run=folder / "run", golden=folder / "golden", shared_golden=shared / "golden")
    left = [process.pid for process in psutil.process_iter(["cmdline"]) if _below(folder, process)]
    files = [path for path in folder.glob("run/*") if path.name != "cache"]
    shutil.rmtree(folder)
    assert not left, "a QEMU was left behind"
    assert not files, "files were left behind"


def _below(folder: Path, process: psutil.Process) -> bool:
    return any(str(folder) in word for word in process.info["cmdline"] or [])


def tiny_guest(folder: Path, text: bytes, name: str) -> VMSpec:
    """A spec whose guest prints ``text`` and waits for ever."""
    initrd, root = folder / f"{name}.initrd", folder / "root"
    initrd.write_bytes(initramfs(b"\n" + text, then_restart=False))
    root.write_bytes(bytes(1 << 20))
    for path in (initrd, root):
        path.chmod(0o644)
    image = open_image("default")
    return VMSpec(
        kernel=image.kernel,
        initrd=initrd,
        root=root,
        image_digest=image.digest,
        agent_digest=name,
        memory_mib=192,
        vcpus=1,
        accelerator="tcg",
        transport="virtio-serial",
    )
