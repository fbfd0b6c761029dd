"""The guest's initramfs: a cpio writer, what goes into the archive, and the agent's own archive.

The kernel unpacks several cpio archives that follow each other in one file. An image has the first (drivers, busybox,
``init.sh``); the agent travels in a second one that is appended when a golden snapshot is built, so that an upgrade
of this package needs no new image.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import guest_agent
from vm_kernel.errors import ImageError
from vm_kernel.image.store import Image

#: loaded by init.sh, with what they depend on; those that are built into the kernel are left out
MODULES = (
    "crc32c_generic",  # erofs asks the kernel's crypto API for it by name
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "vsock",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
    "vmgenid",
)
_INIT = Path(__file__).with_name("init.sh")
_FOLDERS = ("bin", "dev", "lower", "modules", "newroot", "proc", "sys", "upper")


@dataclass(frozen=True)
class Entry:
    """One member of a cpio archive. ``mode`` has the file type; ``device`` is (major, minor) of a device node."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str) -> Entry:
    """A directory."""
    return Entry(path, stat.S_IFDIR | 0o755)


def file(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | mode, data)


def cpio(entries: Iterable[Entry]) -> bytes:
    """An archive in the "newc" format, everything owned by root and dated 1970, so that equal input gives equal bytes.

    Padded to 512 bytes: the kernel wants the next archive aligned.
    """
    parts = [_member(number, entry) for number, entry in enumerate(entries, start=1)]
    parts.append(_member(0, Entry("TRAILER!!!", 0)))
    archive = b"".join(parts)
    return archive + bytes(-len(archive) % 512)


def _member(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)


def base_archive(busybox: bytes, modules: Path) -> bytes:
    """The image's initramfs. ``modules`` is the kernel package's ``lib/modules/VERSION``.

    Called by the builder. Raises ImageError if a module is neither there nor built in.
    """
    files = module_files(modules, MODULES)
    order = "".join(f"{path.name}\n" for path in files)
    return cpio(
        [
            *map(folder, _FOLDERS),
            Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            file("bin/busybox", busybox, 0o755),
            file("init", _INIT.read_bytes(), 0o755),
            file("modules/order", order.encode()),
            *(file(f"modules/{path.name}", path.read_bytes()) for path in files),
        ]
    )


def module_files(modules: Path, names: Iterable[str]) -> list[Path]:
    """The files of the modules of those names and of what they depend on, in an order in which they can be loaded."""
    by_name = {path.stem.replace("-", "_"): path for path in modules.rglob("*.ko")}
    builtin = (modules / "modules.builtin").read_text().splitlines()
    built_in = {Path(line).stem.replace("-", "_") for line in builtin}
    ordered: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in ordered or name in built_in:
            return
        if name not in by_name:
            raise ImageError(f"The guest's kernel has no module {name}.", "This is a fault of ours; please report it.")
        for needed in dependencies(by_name[name].read_bytes()):
            add(needed)
        ordered[name] = by_name[name]

    for name in names:
        add(name)
    return list(ordered.values())


def dependencies(module: bytes) -> list[str]:
    """What a kernel module says that it needs: ``depends=a,b`` among the strings of its ``.modinfo`` section."""
    for text in module.split(b"\0"):
        if text.startswith(b"depends="):
            names = text.removeprefix(b"depends=").decode("ascii")
            return [name.replace("-", "_") for name in names.split(",") if name]
    return []


def agent_archive() -> bytes:
    """The installed ``guest_agent`` package as a cpio archive; init.sh copies it to /opt/vm-kernel in the guest."""
    package = Path(guest_agent.__file__).parent
    sources = sorted(package.glob("*.py"))
    members = [file(f"agent/guest_agent/{path.name}", path.read_bytes()) for path in sources]
    return cpio([folder("agent"), folder("agent/guest_agent"), *members])


def boot_initrd(image: Image, target: Path) -> str:
    """Write the initramfs that a VM boots with: the image's and the agent's. Returns the agent archive's SHA-256 (hex).

    The pool service calls it before it builds a golden snapshot. Raises OSError if ``target`` cannot be written.
    """
    agent = agent_archive()
    target.write_bytes(image.initrd.read_bytes() + agent)
    return hashlib.sha256(agent).hexdigest()
