"""The store of guest images: finding, listing, checking and removing them. It does not build any.

Layout below ``paths.images_dir()``::

    <digest>/           vmlinux  initrd.img  root.erofs  manifest.json
    names/<name>        -> ../<digest>
    cache/              what the next build can use again (see debian.py)
    .build-*/           a build that is going on, or the leftovers of one that was killed

The digest names the content: it is the SHA-256 of the manifest (its creation date left out), which in turn has the
SHA-256 of the three files. Used by the pool service (``open_image``), the builder and ``vm-kernel image``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from vm_kernel import paths
from vm_kernel.errors import ImageError

#: called with what is being done and how far that is, 0.0 to 1.0
Progress: TypeAlias = Callable[[str, float], None]

FORMAT = 1
MANIFEST = "manifest.json"
FILES = ("vmlinux", "initrd.img", "root.erofs")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_DIGEST_PREFIX = re.compile(r"[0-9a-f]{8,64}\Z")
_REBUILD = "Build it with: vm-kernel image build"


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 (hex) of one file of an image."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is in an image. Everything but ``created_at`` goes into the digest."""

    debian_release: str
    debian_version: str
    kernel_version: str
    python_version: str
    debian_packages: dict[str, str]
    python_packages: dict[str, str]
    kernel_info: dict[str, Any]
    files: dict[str, FileFacts]
    requirements: list[str] = field(default_factory=list)
    apt: list[str] = field(default_factory=list)
    created_at: str = ""
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content."""
        content = asdict(self)
        del content["created_at"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """As it is written to ``manifest.json``."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read ``manifest.json``. Raises ValueError if it is not a manifest of this format."""
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise ValueError(f"it is not a manifest of format {FORMAT}")
        for name, kind in _FIELD_TYPES.items():
            if not isinstance(fields.get(name), kind):
                raise ValueError(f"{name} is missing or not of type {kind.__name__}")
        if unknown := set(fields) - set(_FIELD_TYPES):
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        return cls(**fields | {"files": _files_from_json(fields["files"])})


_FIELD_TYPES: dict[str, type] = {
    "debian_release": str,
    "debian_version": str,
    "kernel_version": str,
    "python_version": str,
    "debian_packages": dict,
    "python_packages": dict,
    "kernel_info": dict,
    "files": dict,
    "requirements": list,
    "apt": list,
    "created_at": str,
    "format": int,
}


def _files_from_json(fields: dict[str, Any]) -> dict[str, FileFacts]:
    if set(fields) != set(FILES):
        raise ValueError(f"files must be {', '.join(FILES)}")
    try:
        facts = {name: FileFacts(int(entry["size"]), str(entry["sha256"])) for name, entry in fields.items()}
    except (TypeError, KeyError) as error:
        raise ValueError(f"files: {error}") from None
    return facts


@dataclass(frozen=True)
class Image:
    """One image in the store. ``name`` is empty if it was found by its digest."""

    name: str
    digest: str
    folder: Path
    manifest: Manifest

    @property
    def kernel(self) -> Path:
        """The Linux kernel, for QEMU's -kernel."""
        return self.folder / "vmlinux"

    @property
    def initrd(self) -> Path:
        """The initramfs without the agent, see ``initramfs.boot_initrd``."""
        return self.folder / "initrd.img"

    @property
    def root(self) -> Path:
        """The root file system, to be the first virtio disk, read-only."""
        return self.folder / "root.erofs"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(facts.size for facts in self.manifest.files.values())


def check_name(name: str) -> str:
    """Return ``name`` if an image can have it. Raises ImageError otherwise."""
    if not _NAME.match(name) or _DIGEST_PREFIX.match(name):
        raise ImageError(
            f"{name!r} cannot be the name of an image.",
            "Use up to 64 letters, digits, dots, dashes and underscores, and not what looks like a digest.",
        )
    return name


def open_image(name: str = "default") -> Image:
    """Find an image by its name, or by its digest's first 8 or more digits.

    The pool service calls it for each profile before it builds or loads a golden snapshot; sizes are checked here,
    digests in :func:`verify_image`. Raises ImageError if there is none, or if it is damaged.
    """
    link = _names_dir() / name
    if _NAME.match(name) and link.is_symlink():
        folder = link.resolve()
        if not folder.is_dir():
            raise ImageError(f"The image {name!r} is gone: its folder {folder} is not there.", _rebuild(name))
        return _open_folder(folder, name)
    if _DIGEST_PREFIX.match(name):
        return _open_folder(_folder_of_prefix(name), "")
    known = ", ".join(sorted(_names())) or "none"
    raise ImageError(f"There is no guest image {name!r} in {paths.images_dir()} (there: {known}).", _rebuild(name))


def list_images() -> list[Image]:
    """Every image that can be opened, named ones first; an image with two names is there twice."""
    return [found for found in _everything() if isinstance(found, Image)]


def list_damaged() -> list[ImageError]:
    """Why images that are in the store cannot be opened, for ``vm-kernel image list`` and ``doctor``."""
    return [found for found in _everything() if isinstance(found, ImageError)]


def remove_image(name: str) -> None:
    """Remove a name, and the image itself if it has no other name. Also takes a digest's prefix (all names go).

    Damaged images can be removed too. Raises ImageError if there is no such image.
    """
    names = _names()
    if name in names:
        folder = names.pop(name)
        (_names_dir() / name).unlink()
        if folder in names.values():
            return
    elif _DIGEST_PREFIX.match(name):
        folder = _folder_of_prefix(name)
        for other, target in names.items():
            if target == folder:
                (_names_dir() / other).unlink()
    else:
        open_image(name)
        return
    if _is_ours(folder):
        shutil.rmtree(folder, ignore_errors=True)


def verify_image(image: Image) -> None:
    """Read the whole image and compare digests. Raises ImageError that names the damaged file."""
    for name, facts in image.manifest.files.items():
        if file_facts(image.folder / name) != facts:
            raise ImageError(
                f"The image {image.name or image.digest[:12]} is damaged: {image.folder / name} has changed.",
                _rebuild(image.name),
            )


def file_facts(path: Path) -> FileFacts:
    """Size and digest of a file."""
    with path.open("rb") as file:
        return FileFacts(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def admit(folder: Path, manifest: Manifest, name: str) -> Image:
    """Move a finished build's ``folder`` into the store and give it a name. The builder calls it as its last step.

    Atomic: before it returns, ``name`` means what it meant before. Content that is already there is kept.
    """
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    target = paths.images_dir() / manifest.digest
    try:
        _open_folder(target, name)
    except (ImageError, OSError):
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
    _names_dir().mkdir(exist_ok=True)
    temporary = _names_dir() / f".{name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"../{manifest.digest}")
    temporary.replace(_names_dir() / name)
    return open_image(name)


def _names_dir() -> Path:
    return paths.images_dir() / "names"


def _names() -> dict[str, Path]:
    """Every name in the store and the folder that it points to, which may be gone."""
    if not _names_dir().is_dir():
        return {}
    return {link.name: link.resolve() for link in _names_dir().iterdir() if _NAME.match(link.name)}


def _is_ours(folder: Path) -> bool:
    return folder.parent == paths.images_dir().resolve() and bool(_DIGEST.match(folder.name))


def _folders() -> list[Path]:
    if not paths.images_dir().is_dir():
        return []
    return [entry for entry in paths.images_dir().resolve().iterdir() if _DIGEST.match(entry.name)]


def _folder_of_prefix(prefix: str) -> Path:
    found = [folder for folder in _folders() if folder.name.startswith(prefix)]
    if len(found) != 1:
        what = "no image" if not found else f"{len(found)} images"
        raise ImageError(f"There is {what} with a digest that starts with {prefix}.", "See: vm-kernel image list")
    return found[0]


def _everything() -> Iterator[Image | ImageError]:
    names = _names()
    unnamed = [folder for folder in _folders() if folder not in names.values()]
    for name, folder in [*sorted(names.items()), *(("", folder) for folder in sorted(unnamed))]:
        try:
            yield open_image(name or folder.name)
        except ImageError as error:
            yield error


def _open_folder(folder: Path, name: str) -> Image:
    """Read the manifest and compare it with what is there. Raises ImageError."""
    shown = f"The image {name!r}" if name else f"The image {folder.name[:12]}"
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageError(f"{shown} is damaged: {folder / MANIFEST}: {error}", _rebuild(name)) from None
    if manifest.digest != folder.name:
        raise ImageError(f"{shown} is damaged: {folder / MANIFEST} was changed after the build.", _rebuild(name))
    for file, facts in manifest.files.items():
        try:
            size = (folder / file).stat().st_size
        except OSError as error:
            raise ImageError(f"{shown} is damaged: {error}", _rebuild(name)) from None
        if size != facts.size:
            raise ImageError(
                f"{shown} is damaged: {folder / file} has {size} bytes instead of {facts.size}.", _rebuild(name)
            )
    return Image(name, folder.name, folder, manifest)


def _rebuild(name: str) -> str:
    return _REBUILD if name in ("", "default") else f"{_REBUILD} --name {name}"
