"""Building a guest image, start to end. The parts are in debian.py, wheels.py, initramfs.py and guest.sh.

A build happens in a folder ``.build-*`` of the store, which is renamed at its end, so an image is there as a whole or
not at all. The folder holds a lock as long as its builder lives; the next build removes folders without one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from vm_kernel import paths
from vm_kernel.errors import HostError, ImageError
from vm_kernel.image import debian, initramfs, namespace, store, wheels
from vm_kernel.image.store import Image, Manifest, Progress

_log = structlog.get_logger(__name__)
_HERE = Path(__file__).parent
_BUILD = ".build-"
_NEEDED_BYTES = 3 * 1024**3
#: all files' date and the file system's UUID are fixed, so that equal content gives an equal image
_EROFS_OPTIONS = ("-T0", "-U", "6f4c4f3a-5d0c-4a4e-9f5e-766d6b65726e", "-x-1")
#: $1: tarball, $2: root, $3: folder to be seen as /mnt. In a mount namespace, so nothing needs to be unmounted.
_CONFIGURE = """\
set -eu
mkdir "$2"
tar --extract --file "$1" --directory "$2" --numeric-owner --exclude "./dev/*"
mount --rbind /proc "$2/proc"
mount -t tmpfs -o mode=755 dev "$2/dev"
mkdir -m 1777 "$2/dev/shm"
for node in null zero full random urandom; do : >"$2/dev/$node"; mount --bind "/dev/$node" "$2/dev/$node"; done
ln -s /proc/self/fd "$2/dev/fd"
mount --bind "$3" "$2/mnt"
exec chroot "$2" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    LANG=C.UTF-8 TMPDIR=/tmp sh /mnt/guest.sh
"""


def build_image(
    name: str = "default",
    requirements: Path | None = None,
    apt: Sequence[str] = (),
    progress: Progress = lambda stage, fraction: None,
) -> Image:
    """Build an image and give it a name; an older image of that name stays in the store without it.

    Takes about a minute with warm caches. ``progress`` gets what is being done and how far this stage is, 0.0 to 1.0.
    Raises ImageError (what is asked for cannot be built), HostError (the machine lacks something). Interrupted or
    failed, it leaves nothing half-made.
    """
    store.check_name(name)
    debian.check_packages(apt)
    if requirements is not None:
        requirements = wheels.check_requirements(requirements)
    images = _writable(paths.images_dir())
    namespace.check_host()
    remove_leftovers()
    with _work_folder(images) as work:
        return _build(work, name, requirements, sorted(set(apt)), progress)


def remove_leftovers() -> int:
    """Remove what builds that were killed have left in the store. Returns how many there were."""
    count = 0
    for folder in paths.images_dir().glob(f"{_BUILD}*"):
        lock = _locked(folder)
        if lock is None:
            continue
        try:
            namespace.remove_tree(folder)
            count += 1
        except (OSError, namespace.CommandFailed) as error:
            _log.warning("image.leftover", folder=str(folder), error=str(error))
        finally:
            os.close(lock)
    return count


def _build(work: Path, name: str, requirements: Path | None, apt: list[str], progress: Progress) -> Image:
    shared = work / "mnt"
    shared.mkdir()
    pinned = wheels.fetch(requirements, shared / "wheels", work, progress)
    base = debian.base_system(apt, paths.images_dir() / "cache", work, progress)
    facts = _configure(work, base, shared, progress)
    made = work / "image"
    made.mkdir()
    progress("Image: writing the root file system", 0.0)
    _make_erofs(made / "root.erofs", work / "root")
    progress("Image: writing kernel and initramfs", 0.8)
    (made / "vmlinux").write_bytes(base.kernel.read_bytes())
    (made / "initrd.img").write_bytes(initramfs.base_archive(base.busybox.read_bytes(), base.modules))
    manifest = Manifest(
        debian_release=debian.RELEASE,
        kernel_version=base.kernel_version,
        requirements=pinned,
        apt=apt,
        files={file: store.file_facts(made / file) for file in store.FILES},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    )
    made.chmod(0o755)
    for file in made.iterdir():
        file.chmod(0o644)
    image = store.admit(made, manifest, name)
    progress("Image: done", 1.0)
    return image


def _configure(work: Path, base: debian.Base, shared: Path, progress: Progress) -> dict[str, Any]:
    """Unpack the base system and run guest.sh in it. Returns what it found out, as fields of the manifest."""
    for script in ("guest.sh", "probe.py"):
        (shared / script).write_bytes((_HERE / script).read_bytes())

    def on_line(line: str) -> None:
        mark, _, rest = line.partition("step: ")
        if not mark and rest:
            fraction, _, what = rest.partition(" ")
            progress(f"Guest: {what}", float(fraction))

    progress("Guest: unpacking the base system", 0.0)
    command = ["sh", "-c", _CONFIGURE, "configure", str(base.tarball), str(work / "root"), str(shared)]
    try:
        namespace.run(command, on_line, folder=work)
    except namespace.CommandFailed as error:
        raise ImageError(
            f"The guest's packages could not be set up:\n{error.output.strip()}",
            "If the requirements are your own, the last lines say which of them do not fit together.",
        ) from None
    facts: dict[str, Any] = json.loads((shared / "facts.json").read_text())
    packages = dict(line.split() for line in (shared / "debian-packages").read_text().splitlines())
    progress("Guest: done", 1.0)
    return facts | {"debian_packages": packages}


def _make_erofs(target: Path, root: Path) -> None:
    command = ["mkfs.erofs", *_EROFS_OPTIONS, str(target), str(root)]
    try:
        namespace.run(command, folder=target.parent)
    except namespace.CommandFailed as error:
        raise ImageError(f"The root file system could not be written ({error}):\n{error.output.strip()}") from None


def _writable(images: Path) -> Path:
    try:
        images.mkdir(parents=True, exist_ok=True, mode=0o755)
        space = os.statvfs(images)
    except OSError as error:
        raise HostError(f"The image store {images} cannot be made: {error}", "Set VM_KERNEL_HOME elsewhere.") from None
    if not os.access(images, os.W_OK):
        raise HostError(f"The image store {images} is not writable for you.", "Set VM_KERNEL_HOME elsewhere.")
    if (free := space.f_bavail * space.f_frsize) < _NEEDED_BYTES:
        raise HostError(
            f"{images} has {free / 1e9:.1f} GB free; a build needs {_NEEDED_BYTES / 1e9:.1f} GB.",
            "Free some space (vm-kernel image list, vm-kernel image rm), or set VM_KERNEL_HOME elsewhere.",
        )
    return images


@contextlib.contextmanager
def _work_folder(images: Path) -> Iterator[Path]:
    """A folder for one build, locked while it goes on and removed after it."""
    work = Path(tempfile.mkdtemp(prefix=_BUILD, dir=images))
    lock = _locked(work)
    try:
        yield work
    finally:
        namespace.remove_tree(work)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """Take the folder's lock, which ends with this process; None if a living builder has it."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
