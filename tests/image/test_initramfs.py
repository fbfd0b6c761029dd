"""The initramfs: an archive that the kernel can unpack, modules in an order in which they load, the agent inside."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from vm_kernel.errors import ImageError
from vm_kernel.image import initramfs
from vm_kernel.image.store import open_image

Members = dict[str, tuple[int, bytes]]


def unpack(archive: bytes) -> Members:
    """Read a "newc" archive as the kernel does: name to mode and content, up to the trailer."""
    members: Members = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size].rstrip(b"\0").decode()
        at = aligned(at + 110 + name_size)
        if name == "TRAILER!!!":
            assert not any(archive[at:])
            return members
        members[name] = (mode, archive[at : at + size])
        at = aligned(at + size)


def aligned(offset: int) -> int:
    """The next multiple of four."""
    return offset + -offset % 4


def module_tree(folder: Path, builtin: str = "", **depends: str) -> Path:
    """A lib/modules folder with those modules and what each says that it depends on."""
    folder.mkdir()
    (folder / "modules.builtin").write_text(builtin)
    for name, needed in depends.items():
        (folder / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + needed.encode() + b"\0name=x\0")
    return folder


def test_an_archive_is_read_back_as_it_was_written() -> None:
    entries = [initramfs.folder("a"), initramfs.file("a/b", b"12345"), initramfs.file("run", b"#!", 0o755)]
    archive = initramfs.cpio(entries)
    assert len(archive) % 512 == 0
    assert unpack(archive) == {
        "a": (stat.S_IFDIR | 0o755, b""),
        "a/b": (stat.S_IFREG | 0o644, b"12345"),
        "run": (stat.S_IFREG | 0o755, b"#!"),
    }


def test_equal_content_gives_equal_bytes() -> None:
    assert initramfs.cpio([initramfs.file("a", b"x")]) == initramfs.cpio([initramfs.file("a", b"x")])


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    modules = module_tree(tmp_path / "m", "kernel/inside.ko\n", top="mid-dle,base", **{"mid-dle": "base"}, base="")
    assert [path.stem for path in initramfs.module_files(modules, ("top", "inside"))] == ["base", "mid-dle", "top"]


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no module base"):
        initramfs.module_files(module_tree(tmp_path / "m", top="base"), ("top",))


def test_the_agent_travels_beside_the_image(tmp_path: Path) -> None:
    digest = initramfs.boot_initrd(open_image(), tmp_path / "initrd")
    image, agent = open_image().initrd.read_bytes(), initramfs.agent_archive()
    assert (tmp_path / "initrd").read_bytes() == image + agent
    assert hashlib.sha256(agent).hexdigest() == digest
    assert {"init", "bin/busybox", "modules/order", "dev/console"} <= unpack(image).keys()
    assert {"agent/guest_agent/__init__.py", "agent/guest_agent/agent.py"} <= unpack(agent).keys()
