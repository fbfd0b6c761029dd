"""The QEMU that emulates the lab host's processor: one of version 10, whatever the machine has.

QEMU 7.2 now and then delivers an interrupt right after a guest's exit, before KVM has its own registers back: the lab
host's kernel then faults on every access to its per-CPU data, and panics. Two of three boots did; one trace says this.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from vm_kernel.image import namespace
from vm_kernel.vm.host import qemu_binary, qemu_version

_LEAST = 10
_RELEASE = "trixie"
_PACKAGES = ("qemu-system-x86", "seabios")


def emulator(store: Path, say: Callable[[str], None]) -> list[str]:
    """The beginning of a command line: the machine's own QEMU if it is new enough, or Debian 13's, not installed.

    ``store``: where that is kept. Raises namespace.CommandFailed, such as without a network.
    """
    if int(qemu_version().split(".")[0]) >= _LEAST:
        return [str(qemu_binary())]
    root = store / f"qemu-{_RELEASE}"
    if not root.exists():
        say(f"Lab host: fetching Debian {_RELEASE}'s QEMU")
        _unpack(store, root)
    # its own dynamic linker and libraries: those of the machine are older
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return [
        str(root / "usr/lib64/ld-linux-x86-64.so.2"),
        *("--library-path", str(libraries)),
        str(root / "usr/bin/qemu-system-x86_64"),
        *("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")),
    ]


def _unpack(store: Path, target: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=store))
    try:
        archive, root = work / "root.tar", work / "root"
        options = ["--mode=root", "--variant=extract", "--format=tar", f"--include={','.join(_PACKAGES)}"]
        namespace.run(["mmdebstrap", *options, _RELEASE, str(archive)], folder=work)
        root.mkdir()
        unpack = ["tar", "-xf", str(archive), "-C", str(root), "--no-same-owner", "--exclude=./dev"]
        namespace.run_plainly(unpack, folder=work)
        root.rename(target)
    finally:
        namespace.remove_tree(work)
