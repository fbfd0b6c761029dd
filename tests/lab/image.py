"""The lab host's image: Debian with KVM's and vsock's modules, QEMU, libvirt and our dependencies. Not our own code.

Our code comes with each run, as a payload (see ``host``); so an image serves until its recipe changes, and is kept
beside the store of guest images. It is built with the same parts as a guest image: ``vm_kernel.image``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vm_kernel import paths
from vm_kernel.image import debian, initramfs, namespace

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent

#: Debian's release to its Python
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}
#: libvirt's Python binding is Debian's own: from PyPI it would have to be compiled
_PACKAGES = (
    "iproute2",
    "kmod",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "procps",
    "python3-libvirt",
    "python3-venv",
    "qemu-system-x86",
    "sudo",
    "systemd",
)
_NOT_FROM_PYPI = "libvirt-python"
_TEST_PACKAGES = ("pytest", "pytest-asyncio", "pytest-reportlog", "pytest-rerunfailures", "pytest-timeout")
#: what the initramfs loads to find the disks; KVM and vsock are loaded later, as on any host
_EARLY_MODULES = ("crc32c_generic", "virtio_pci", "virtio_blk", "erofs", "overlay")
_KEPT = 3


@dataclass(frozen=True)
class LabImage:
    """Files that a lab host boots from."""

    folder: Path

    @property
    def root(self) -> Path:
        """The root file system (erofs)."""
        return self.folder / "root.erofs"

    @property
    def kernel(self) -> Path:
        """The kernel, uncompressed."""
        return self.folder / "vmlinux"

    @property
    def initrd(self) -> Path:
        """The initramfs, which is remade for each run from parts that are kept: ``init.sh`` may have changed."""
        return self.folder / "initrd.img"


def lab_image(release: str, say: Callable[[str], None]) -> LabImage:
    """The image for a Debian release (see RELEASES), built if there is none. ``say`` gets lines for a person.

    Raises ImageError, HostError, namespace.CommandFailed.
    """
    requirements = _requirements()
    recipe = [release, _PACKAGES, requirements, _EARLY_MODULES, (HERE / "configure.sh").read_text()]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    store = paths.images_dir().parent / "lab"
    image = LabImage(store / key)
    if image.root.exists():
        os.utime(image.folder)
    else:
        store.mkdir(parents=True, exist_ok=True)
        _build(release, requirements, image.folder, say)
        _prune(store)
    return image


def _build(release: str, requirements: list[str], target: Path, say: Callable[[str], None]) -> None:
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=target.parent))
    try:
        shared, made = work / "mnt", work / "image"
        made.mkdir()
        (shared / "wheels").mkdir(parents=True)
        _fetch(release, requirements, shared / "wheels", work, say)
        base = debian.base_system(_PACKAGES, paths.images_dir() / "cache", work, lambda what, _: say(what), release)
        shutil.copytree(base.modules, shared / "modules")
        (shared / "kernel-version").write_text(base.kernel_version)
        say("Lab host: installing")
        configure = [HERE / "configure.sh", base.tarball, work / "root", shared]
        namespace.run(["sh", *map(str, configure)], folder=work)
        say("Lab host: writing the root file system")
        namespace.run(["mkfs.erofs", str(made / "root.erofs"), str(work / "root")], folder=work)
        (made / "vmlinux").write_bytes(base.kernel.read_bytes())
        (made / "initrd.img").write_bytes(_initramfs(base))
        made.rename(target)
    finally:
        namespace.remove_tree(work)


def _initramfs(base: debian.Base) -> bytes:
    """Busybox and drivers; the init itself is a file of the payload's archive (see ``host``), which follows this."""
    files = initramfs.module_files(base.modules, _EARLY_MODULES)
    return initramfs.cpio(
        [
            *map(initramfs.folder, ("bin", "dev", "lower", "modules", "newroot", "proc", "sys", "upper")),
            initramfs.file("bin/busybox", base.busybox.read_bytes(), 0o755),
            initramfs.file("modules/order", "".join(f"{path.name}\n" for path in files).encode()),
            *(initramfs.file(f"modules/{path.name}", path.read_bytes()) for path in files),
        ]
    )


def _requirements() -> list[str]:
    """What this project needs from PyPI, and what its tests need inside the lab."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [line for line in project["dependencies"] if not line.startswith(_NOT_FROM_PYPI)]
    wanted += [line for line in project["optional-dependencies"]["test"] if _name(line) in _TEST_PACKAGES]
    return sorted(wanted)


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return match[0]


def _fetch(release: str, requirements: list[str], target: Path, work: Path, say: Callable[[str], None]) -> None:
    """Wheels for the lab's Python, with the host's pip."""
    say("Lab host: fetching Python packages")
    version = RELEASES[release]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(target)]
    if version != f"{sys.version_info.major}.{sys.version_info.minor}":
        command += ["--python-version", version, "--platform", "manylinux_2_28_x86_64"]
        command += ["--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64"]
    namespace.run_plainly([*command, *requirements], folder=work)


def _prune(store: Path) -> None:
    images = sorted((path for path in store.glob("[0-9a-f]*")), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in images[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
