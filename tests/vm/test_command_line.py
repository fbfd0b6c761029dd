"""The exact command line of QEMU as libvirt makes it, and what the host's kernel then says of the process.

It is kept in ``command_lines/``, a file for each version of QEMU and libvirt and for each role, with what differs from
VM to VM replaced. After a wanted change, or for another version, write it anew and read the difference:
``VM_KERNEL_WRITE_COMMAND_LINES=1 pytest tests/vm/test_command_line.py``.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import pytest

from tests.vm import walls
from tests.vm.child import in_child
from tests.vm.conftest import tiny_guest
from tests.vm.places import Place
from vm_kernel.errors import GoldenError
from vm_kernel.vm import bounds, process
from vm_kernel.vm.golden import load_or_build
from vm_kernel.vm.host import libvirt_version, qemu_version
from vm_kernel.vm.machine import clone
from vm_kernel.vm.spec import VMSpec

FOLDER = Path(__file__).with_name("command_lines")
WRITE = os.environ.get("VM_KERNEL_WRITE_COMMAND_LINES") == "1"


def seen(place: Place, spec: VMSpec) -> dict[str, tuple[str, dict[str, str], walls.Limits, set[str]]]:
    """In a child: of a template while it runs and of a clone, the command line, status, limits, and open files."""
    found: dict[str, tuple[str, dict[str, str], walls.Limits, set[str]]] = {}

    def look(role: str, pid: int) -> None:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        lines = "".join(f"{_normal(word, place)}\n" for word in words if word)
        files = {_normal(name, place) for name in walls.open_files(pid)}
        found[role] = (lines, walls.status(pid), walls.limits(pid), files)

    def progress(stage: str, _fraction: float) -> None:
        with suppress(StopIteration):
            if stage.startswith("booting"):
                look("template", next(process.qemus_of(place.run)))

    with place.hypervisor() as hv:
        golden = load_or_build(hv, spec, place.golden, progress)
        machine = clone(hv, golden, "vm-1")
        look("clone", machine.pid)
        machine.destroy()
        golden.close()
    return found


def _normal(text: str, place: Place) -> str:
    """Without what is another in every run."""
    for pattern, name in (
        (re.escape(str(place.run)), "RUN"),
        (r"/[^\"=, ]*/(vmlinu[xz]|[a-z]+\.initrd|root)\b", r"IMAGES/\1"),
        (r"/proc/\d+/fd/\d+", "/proc/SERVICE/fd/N"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"golden-[0-9a-f]{8}", "NAME"),
        (r"vm-1\b", "NAME"),
        (r"domain-\d+-NAME", "domain-N-NAME"),
        (r"\bfd=\d+", "fd=N"),
    ):
        text = re.sub(pattern, name, text)
    return text


def test_the_command_line_and_the_process_are_what_they_are_meant_to_be(place: Place, tiny: VMSpec) -> None:
    found = in_child(seen, place, tiny)
    assert list(found) == ["template", "clone"]
    for role, (lines, status, limits, files) in found.items():
        expected = FOLDER / f"{role}-qemu-{_short(qemu_version())}-libvirt-{_short(libvirt_version())}.txt"
        if WRITE:
            FOLDER.mkdir(exist_ok=True)
            expected.write_text(lines)
        assert expected.exists(), f"no command line of this version of QEMU and libvirt is kept; see above:\n{lines}"
        assert lines == expected.read_text()
        assert {name: status[name] for name in walls.WALLED} == walls.WALLED
        assert "0" not in status["Uid"].split()
        data = 2 * tiny.memory_mib + bounds.OWN_MEMORY_MIB + bounds.VCPU_MEMORY_MIB << 20
        assert limits == ("0", str(bounds.FILE_BYTES), str(data), str(bounds.DESCRIPTORS))
        named = {name for name in files if name.startswith(("/", "RUN", "IMAGES"))}
        console = {"RUN/vm/NAME.console w"} if role == "template" else set()
        assert named == console | {
            "/dev/null rw",
            "RUN/log/qemu/NAME.log w",
            "RUN/run/qemu/NAME.pid w",
            "IMAGES/root r",
            f"/memfd:vm-kernel-golden (deleted) {'r' if 'readonly=on' in lines else 'rw'}",
        }


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])


@pytest.mark.parametrize("role", ["template", "clone"])
def test_what_no_machine_of_ours_has(role: str) -> None:
    for path in FOLDER.glob(f"{role}-*.txt"):
        words = path.read_text()
        for device in ("-netdev", "virtio-net", "-nic", "usb-", "-vnc", "-spice", "vga", "balloon", "sound", "hda"):
            assert device not in words.lower(), f"{device} in {path.name}"
        for wall in ("-sandbox\non,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny\n",
                     "-nodefaults\n", "-no-user-config\n", "-display\nnone\n", "mem-merge=off", "dump-guest-core=off",
                     "merge=off,dump=off", "smm=off", "usb=off", '"read-only":true'):  # fmt: skip
            assert wall in words, f"{wall} is not in {path.name}"


def test_a_template_that_floods_its_console_ends_and_the_disk_stays_as_it_is(place: Place, shared: Path) -> None:
    flooding = tiny_guest(shared, b"x" * (16 << 20), "flooding")

    def body() -> None:
        sizes = [0]

        def progress(_stage: str, _fraction: float) -> None:
            sizes.extend(path.stat().st_size for path in place.run.glob("vm/*.console"))

        with place.hypervisor() as hv, pytest.raises(GoldenError, match="wrote more than 256 KiB on its console"):
            load_or_build(hv, flooding, place.golden, progress)
        assert max(sizes) <= bounds.FILE_BYTES

    in_child(body)
