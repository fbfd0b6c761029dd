"""The Debian part of an image: a bootstrapped base system, the kernel with its modules, and busybox.

What it makes is kept in the store's cache, so that a build that differs only in its Python packages takes seconds here.
A cached base is used for a week: after that Debian has security updates to pick up.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import shutil
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vm_kernel.errors import ImageError
from vm_kernel.image import namespace
from vm_kernel.image.store import Progress

RELEASE = "bookworm"
PACKAGES = (
    "bzip2",
    "ca-certificates",
    "file",
    "iproute2",
    "less",
    "procps",
    "python3",
    "tzdata",
    "unzip",
    "xz-utils",
)
_SOURCES = """\
deb http://deb.debian.org/debian {release} main
deb http://deb.debian.org/debian {release}-updates main
deb http://deb.debian.org/debian-security {release}-security main
"""
#: never unpacked: manuals and translations
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
#: in the host, while the chroot's apt is set up: fetch what is unpacked but not installed
_DOWNLOAD_HOOK = """\
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "${0%/*}/debs"
kernel=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: //p')
apt-get download --quiet "$kernel" busybox-static
"""
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?\Z")
#: has /usr merged from the start; otherwise Debian installs a program for it that needs all of Perl
_MERGED_USR = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
_STAGES = (
    ("running apt-get update", 0.05),
    ("downloading packages", 0.2),
    ("extracting archives", 0.3),
    ("installing essential", 0.4),
    ("installing remaining", 0.5),
    ("running --customize-hook", 0.8),
    ("creating tarball", 0.9),
)
_MAX_AGE_S = 7 * 24 * 3600
#: bases that are kept; the ones that were used longest ago go first
_KEPT = 3


@dataclass(frozen=True)
class Base:
    """A bootstrapped Debian and its kernel, in a folder of the cache."""

    folder: Path

    @property
    def tarball(self) -> Path:
        """The root file system."""
        return self.folder / "root.tar"

    @property
    def kernel(self) -> Path:
        """The kernel, uncompressed."""
        return self.folder / "vmlinux"

    @property
    def busybox(self) -> Path:
        """Debian's static busybox."""
        return self.folder / "busybox"

    @property
    def modules(self) -> Path:
        """The kernel package's lib/modules/VERSION, without drivers that no guest of ours has."""
        return self.folder / "modules"

    @property
    def kernel_version(self) -> str:
        """Such as 6.1.0-56-amd64."""
        return (self.folder / "kernel-version").read_text().strip()


def check_packages(packages: Sequence[str]) -> None:
    """Raises ImageError unless these are names of Debian packages (apt takes options and patterns in their place)."""
    for package in packages:
        if not _PACKAGE_NAME.match(package):
            raise ImageError(
                f"{package!r} is not the name of a Debian package.", "Give names such as git or graphviz to --apt."
            )


def base_system(packages: Sequence[str], cache: Path, work: Path, progress: Progress, release: str = RELEASE) -> Base:
    """A base system with PACKAGES and ``packages``, from the cache or new. ``work`` is the build's own folder.

    The builder calls it, and that of the tests' lab host. Raises ImageError if Debian's archive cannot be reached or
    has no such package.
    """
    sources = _SOURCES.format(release=release)
    recipe = [release, sources, _MERGED_USR, *_DPKG_OPTIONS, *sorted({*PACKAGES, *packages})]
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    base = Base(cache / f"debian-{key}")
    if _fresh(base):
        base.folder.touch()
        progress("Debian: using the cached base system", 1.0)
        return base
    made = work / "debian"
    made.mkdir()
    (work / "debs").mkdir()
    _bootstrap(release, sources, sorted({*PACKAGES, *packages}), made / "root.tar", work, progress)
    _unpack_kernel(work, made)
    shutil.rmtree(base.folder, ignore_errors=True)
    cache.mkdir(exist_ok=True)
    made.rename(base.folder)
    _prune(cache)
    progress("Debian: done", 1.0)
    return base


def uncompressed(kernel: bytes) -> bytes:
    """The ELF file in a compressed kernel (bzImage); the kernel as it is if it is packed in another way than Debian's.

    QEMU starts both; unpacking it in the guest, under emulation, would take longer than all the rest of its boot.
    """
    (setup_sectors,) = struct.unpack_from("<B", kernel, 0x1F1)
    offset, length = struct.unpack_from("<II", kernel, 0x248)
    start = 512 * (setup_sectors + 1) + offset
    try:
        # the last four bytes are the unpacked size
        elf = lzma.decompress(kernel[start : start + length - 4], lzma.FORMAT_XZ)
    except lzma.LZMAError:
        return kernel
    return elf if elf.startswith(b"\x7fELF") else kernel


def _fresh(base: Base) -> bool:
    try:
        return time.time() - base.tarball.stat().st_mtime < _MAX_AGE_S
    except OSError:
        return False


def _prune(cache: Path) -> None:
    bases = sorted(cache.glob("debian-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in bases[_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def _bootstrap(release: str, sources: str, packages: list[str], tarball: Path, work: Path, progress: Progress) -> None:
    hook = work / "download.sh"
    hook.write_text(_DOWNLOAD_HOOK)

    def on_line(line: str) -> None:
        for text, fraction in _STAGES:
            if text in line:
                progress(f"Debian: {text}", fraction)

    # our namespace makes us root, so this is mmdebstrap's simplest mode for everybody
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=tar", _MERGED_USR]
    command += [f"--include={','.join(packages)}"]
    command += [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
    command += [f"--customize-hook=sh {hook}", release, str(tarball), "-"]
    try:
        namespace.run(command, on_line, stdin=sources, folder=work)
    except namespace.CommandFailed as error:
        raise _explained(error, release) from None


def _explained(error: namespace.CommandFailed, release: str) -> ImageError:
    missing = re.findall(r"Unable to locate package (\S+)", error.output)
    missing += re.findall(r"Version '\S+' for '(\S+)' was not found", error.output)
    if missing:
        return ImageError(
            f"Debian {release} has no package {', '.join(sorted(set(missing)))}.",
            "Look for the right name on packages.debian.org, then give that to --apt.",
        )
    if re.search(r"Temporary failure resolving|Could not connect|Failed to fetch|Could not resolve", error.output):
        return ImageError(
            f"Debian's archive cannot be reached:\n{error.output.strip()}",
            "Check the network; behind a proxy, set http_proxy.",
        )
    return ImageError(f"Bootstrapping Debian failed ({error}):\n{error.output.strip()}")


def _unpack_kernel(work: Path, made: Path) -> None:
    """Take the kernel, its modules and busybox out of their packages; the packages themselves are not installed."""
    unpacked = work / "unpacked"
    for package in (work / "debs").glob("*.deb"):
        namespace.run_plainly(["dpkg-deb", "-x", str(package), str(unpacked)], folder=work)
    (kernel,) = (unpacked / "boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    (made / "kernel-version").write_text(f"{version}\n")
    (made / "vmlinux").write_bytes(uncompressed(kernel.read_bytes()))
    # below /usr since Debian 13
    top = unpacked if (unpacked / "bin").exists() else unpacked / "usr"
    (top / "bin/busybox").rename(made / "busybox")
    top = unpacked if (unpacked / "lib/modules").exists() else unpacked / "usr"
    modules = top / "lib/modules" / version
    for unused in ("drivers/gpu", "drivers/media", "drivers/net", "sound", "drivers/scsi", "drivers/infiniband"):
        shutil.rmtree(modules / "kernel" / unused, ignore_errors=True)
    for packed in modules.rglob("*.ko.xz"):  # since Debian 13
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()
    modules.rename(made / "modules")
    shutil.rmtree(unpacked)
    shutil.rmtree(work / "debs")
