"""The lab host: a VM under TCG, whose emulated processor has AMD's SVM, so that inside it KVM and vsock are real.

A run boots it, has it carry out one command in a copy of this working tree, and brings out what the command leaves in
``/results``. Nothing of the lab outlives a run but its image.
"""

from __future__ import annotations

import fcntl
import io
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.emulator import emulator
from tests.lab.image import HERE, PROJECT, RELEASES, LabImage, lab_image
from vm_kernel.image import initramfs, namespace
from vm_kernel.image.store import open_image

#: XSAVES and PCID are what nested guests stumble over in QEMU's emulation of SVM. ERMS and FSRM promise that copying
#: byte by byte is fast, so that kernels and C libraries do; emulated, it takes a step for each byte.
_CPU = "EPYC-Milan,+svm,-xsaves,-pcid,-erms,-fsrm"
_MEMORY_MIB = 10240
_RESULTS_BYTES = 256 << 20
_GOLDEN_BYTES = 6 << 30
#: QEMU's emulation of SVM is not perfect: now and then the lab host's kernel finds itself with another guest's state in
#: its registers and panics, or waits for ever for an interrupt that was lost. That says nothing about what is tested in
#: it, so it is booted again.
_ATTEMPTS = 8
#: seconds without a line on the console after which the lab host is taken for stuck; ``host.sh`` writes one every 10 s
_SILENCE_S = 150.0
_FILE_SYSTEM_ID = "0f5cf0a6-3f0e-4d5d-8d0a-6c6162686f73"


class LabCrashed(RuntimeError):
    """The lab host itself has failed, not what it was to do."""


@dataclass(frozen=True)
class Run:
    """What came out of a lab. status: the command's exit status. results: the folder. seconds: of each part."""

    status: int
    results: Path
    seconds: dict[str, float]


def run(
    command: Callable[[Path], list[str]],
    results: Path,
    *,
    release: str = "bookworm",
    vcpus: int = 2,
    timeout_s: float = 3000.0,
    say: Callable[[str], None] = print,
) -> Run:
    """Carry out a command in the lab, in the project's folder, as the user ``lab``.

    ``command`` makes it, when a lab host is about to be booted, of the file with what earlier ones wrote to /dev/ttyS1
    before they crashed. ``results``: a folder that is replaced; that file is its ``reports``. ``say`` gets lines for a
    person, the lab's console among them. A command that fails is not repeated. Raises TimeoutError if it takes longer
    than ``timeout_s`` seconds, LabCrashed if the lab host crashes again and again.
    """
    assert release in RELEASES
    began = time.monotonic()
    image = lab_image(release, say)
    qemu = emulator(image.folder.parent, say)
    built = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vmk-lab-") as name:
        reports = Path(name) / "reports"
        reports.touch()
        for attempt in range(1, _ATTEMPTS + 1):
            begun = time.monotonic()
            try:
                disks = _disks(Path(name), image, command(reports))
                with _golden_disk(image.folder, Path(name)) as golden:
                    _boot(qemu, Path(name), image, [*disks, golden], vcpus, timeout_s, say)
                status = _unpack(disks[3], results)
                break
            except LabCrashed as error:
                say(f"lab: {error} (attempt {attempt} of {_ATTEMPTS})")
                if attempt == _ATTEMPTS:
                    raise
        shutil.copy(reports, results / "reports")
    seconds = {"image": built - began, "earlier attempts": begun - built, "lab": time.monotonic() - begun}
    return Run(status, results, {name: round(value, 1) for name, value in seconds.items()})


def _disks(folder: Path, image: LabImage, command: list[str]) -> list[Path]:
    """vda to vdd: the root, the payload, guest images, results."""
    payload, guests, results = folder / "payload.tar", _guest_images(image.folder.parent), folder / "results"
    with tarfile.open(payload, "w") as archive:
        for path in _sources():
            archive.add(PROJECT / path, f"project/{path}", recursive=False)
        archive.add(HERE / "host.sh", "host.sh")
        _add(archive, "command.sh", f"cd /lab/project && exec {shlex.join(command)}\n".encode())
    with results.open("wb") as file:
        file.truncate(_RESULTS_BYTES)
    return [image.root, payload, guests, results]


def _sources() -> list[str]:
    """The files of the working tree, new ones included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        check=True,
        text=True,
    )
    return sorted(path for path in listed.stdout.split("\0") if path and (PROJECT / path).is_file())


def _guest_images(store: Path) -> Path:
    """The store of guest images as a file system, with the default image alone; kept, because it is large."""
    guest = open_image()
    target = store / f"guest-{guest.digest[:16]}.erofs"
    if target.exists():
        return target
    for old in store.glob("guest-*.erofs"):
        old.unlink()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=store) as name:
        tree = Path(name) / "tree"
        shutil.copytree(guest.folder, tree / guest.folder.name, copy_function=os.link)
        (tree / "names").mkdir()
        (tree / "names" / "default").symlink_to(Path("..") / guest.folder.name)
        made = Path(name) / "guest.erofs"
        namespace.run_plainly(["mkfs.erofs", "-U", _FILE_SYSTEM_ID, "--all-root", str(made), str(tree)])
        made.rename(target)
    return target


@contextmanager
def _golden_disk(kept: Path, folder: Path) -> Iterator[Path]:
    """vde: golden snapshots of earlier runs, so that this one need not build its own; of one run at a time."""
    with (kept / "golden").open("ab") as disk:
        try:
            fcntl.flock(disk, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with (folder / "golden").open("wb") as own:
                own.truncate(_GOLDEN_BYTES)
            yield folder / "golden"
            return
        if disk.tell() < _GOLDEN_BYTES:
            disk.truncate(_GOLDEN_BYTES)
        yield kept / "golden"


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    archive.addfile(member, io.BytesIO(data))


def _boot(
    qemu: list[str],
    folder: Path,
    image: LabImage,
    disks: list[Path],
    vcpus: int,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    initrd = folder / "initrd"
    init = initramfs.cpio([initramfs.file("init", (HERE / "init.sh").read_bytes(), 0o755)])
    initrd.write_bytes(image.initrd.read_bytes() + init)
    command = [
        *qemu, "-accel", "tcg,thread=multi,tb-size=512", "-machine", "pc,usb=off,hpet=off", "-cpu", _CPU,
        "-smp", str(vcpus), "-m", str(_MEMORY_MIB), "-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
        "-chardev", f"file,id=reports,append=on,path={folder / 'reports'}",
        "-serial", "stdio", "-serial", "chardev:reports", "-kernel", str(image.kernel), "-initrd", str(initrd),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable nowatchdog audit=0",
    ]  # fmt: skip
    for number, disk in enumerate(disks):
        access = "off" if number >= 3 else "on"
        command += ["-drive", f"if=virtio,format=raw,cache=unsafe,file={disk},read-only={access}"]
    with _killed_at_end(command) as host:
        _follow(host, timeout_s, say)


@contextmanager
def _killed_at_end(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive this one, either."""
    host = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield host
    finally:
        host.kill()
        host.communicate()


def _follow(host: subprocess.Popen[bytes], timeout_s: float, say: Callable[[str], None]) -> None:
    assert host.stdout is not None
    os.set_blocking(host.stdout.fileno(), False)
    deadline, rest, heard = time.monotonic() + timeout_s, b"", time.monotonic()
    while host.poll() is None or rest:
        if time.monotonic() > deadline:
            raise TimeoutError(f"The lab host has not ended within {timeout_s:.0f} s.")
        chunk = host.stdout.read()
        if not chunk:
            if host.poll() is not None:
                break
            if time.monotonic() > heard + _SILENCE_S:
                raise LabCrashed(f"the lab host has not said a word for {_SILENCE_S:.0f} s")
            time.sleep(0.05)
            continue
        heard = time.monotonic()
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            say(line.decode(errors="replace").rstrip())


def _unpack(disk: Path, results: Path) -> int:
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    try:
        namespace.run_plainly(["tar", "-xf", str(disk), "-C", str(results), "--no-same-owner"])
        return int((results / "status").read_text())
    except (namespace.CommandFailed, OSError, ValueError) as error:
        raise LabCrashed(f"the lab host ended without results ({error}); its console says why") from None
