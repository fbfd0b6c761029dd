"""The Python part of an image: fetching wheels for the guest's Python with the host's pip. Nothing is installed here.

The packages that every image has are pinned with hashes in ``requirements.lock``. Requirements of the user's own are
resolved together with them for the guest (Python 3.11, x86-64 Linux), whatever Python the host has. Wheels only: a
source distribution would run its code on the host.

``python -m vm_kernel.image.wheels`` resolves ``requirements.in`` anew and writes ``requirements.lock``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import tempfile
from pathlib import Path

from vm_kernel.errors import HostError, ImageError
from vm_kernel.image import namespace
from vm_kernel.image.store import Progress

WANTED = Path(__file__).with_name("requirements.in")
LOCK = Path(__file__).with_name("requirements.lock")
PYTHON = "3.11"
#: Debian 12 has glibc 2.36; best first
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 16, -1)] + ["manylinux2014_x86_64"]
#: what environment markers such as python_version < "3.12" are about: the guest, not the Python that runs pip
_MARKERS = {
    "implementation_name": "cpython",
    "implementation_version": "3.11.2",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.2",
    "python_version": PYTHON,
    "sys_platform": "linux",
}
#: pip has options for the guest's tags, but takes markers from its own interpreter
_PIP = f"""\
import runpy
from pip._vendor.packaging import markers
host = markers.default_environment
markers.default_environment = lambda: {{**host(), **{_MARKERS!r}}}
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_NO_WHEEL = re.compile(r"No matching distribution found for (.+)")
_DIRECT = re.compile(r"^\s*(-e\b|--editable\b|\.|/|[\w.\[\],-]+\s*@|[a-z+]+://|(git|hg|svn|bzr)\+)", re.IGNORECASE)
_LOCKED = re.compile(r"^(\S+)==(\S+) \\\n +(--hash=sha256:[0-9a-f]{64})$", re.MULTILINE)


def fetch(requirements: Path | None, target: Path, work: Path, progress: Progress) -> list[str]:
    """Put the wheels of an image into ``target``. Returns each as ``name==version --hash=sha256:…``.

    ``work`` is the build's folder. The builder calls it. Raises ImageError if something has no wheel for the guest or
    does not fit together.
    """
    if importlib.util.find_spec("pip") is None:
        raise HostError(f"{sys.executable} has no pip, which fetches the guest's packages.", "python3 -m ensurepip")
    target.mkdir()
    if requirements is None:
        _download(["--no-deps", "--require-hashes", "-r", str(LOCK)], target, work, progress)
    else:
        _download_own(check_requirements(requirements), target, work, progress)
    pins = sorted(_pinned(wheel) for wheel in target.iterdir())
    _compare_with_lock(pins)
    progress("Python: done", 1.0)
    return pins


def check_requirements(path: Path) -> Path:
    """Return the absolute path of a requirements file that asks for nothing but wheels by name. Raises ImageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ImageError(f"The requirements file {path} cannot be read: {error}", "Give a text file.") from None
    for number, line in enumerate(lines, start=1):
        if _DIRECT.match(line):
            raise ImageError(
                f"{path}, line {number}: {line.strip()!r} is not a package's name.",
                "Packages come from an index, as wheels; give NAME or NAME==VERSION.",
            )
    return path.absolute()


def _download_own(requirements: Path, target: Path, work: Path, progress: Progress) -> None:
    own = ["-r", str(requirements)]
    if "--hash" in requirements.read_text(encoding="utf-8"):
        _download(["--require-hashes", "-r", str(LOCK), *own], target, work, progress)
        return
    pins = work / "pins.txt"
    pins.write_text("".join(f"{package}\n" for package in locked()))
    try:
        _download(["-r", str(WANTED), *own, "-c", str(pins)], target, work, progress)
    except ImageError as error:
        if "ResolutionImpossible" not in error.message:
            raise
        # the user wants another version of what we have, so our pins give way
        _download(["-r", str(WANTED), *own], target, work, progress)


def locked() -> dict[str, str]:
    """What every image has: ``name==version`` to ``--hash=sha256:…``."""
    return {f"{name}=={version}": digest for name, version, digest in _LOCKED.findall(LOCK.read_text())}


def _compare_with_lock(pins: list[str]) -> None:
    """Requirements of the user's own are resolved without hashes; what the lock knows must be what it knows."""
    known = locked()
    for pin in pins:
        package, _, digest = pin.partition(" ")
        if known.get(package, digest) != digest:
            raise ImageError(
                f"The package index gave another file for {package} than the one that was checked for this release.",
                "Check pip's settings (pip config list): which index does it use?",
            )


def _download(what: list[str], target: Path, work: Path, progress: Progress) -> None:
    expected = len(locked())
    collected = 0

    def on_line(line: str) -> None:
        nonlocal collected
        if line.startswith("Collecting "):
            collected += 1
            name = line.split()[1].partition("==")[0]
            progress(f"Python: fetching {name}", min(collected / (expected + 5), 0.95))

    try:
        namespace.run_plainly(_pip_download(target, what), on_line, folder=work)
    except namespace.CommandFailed as error:
        raise _explained(error) from None


def _pip_download(target: Path, what: list[str]) -> list[str]:
    command = [sys.executable, "-c", _PIP, "download", "--no-input", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(target)]
    command += ["--implementation", "cp", "--python-version", PYTHON]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    return [*command, *what]


def _explained(error: namespace.CommandFailed) -> ImageError:
    lines = [line for line in error.output.splitlines() if line and "WARNING" not in line]
    first = next((number for number, line in enumerate(lines) if line.startswith("ERROR")), 0)
    said = "\n".join(lines[first:])
    if re.search(r"NewConnectionError|Temporary failure in name resolution|Max retries exceeded", error.output):
        return ImageError(f"The package index cannot be reached:\n{said}", "Check the network and pip's settings.")
    if "ResolutionImpossible" not in said and (missing := _NO_WHEEL.search(said)):
        return ImageError(
            f"{missing.group(1)} has no wheel for Python {PYTHON} on x86-64 Linux (or does not exist):\n{said}",
            "Choose a version that has one; source distributions are not built.",
        )
    return ImageError(
        f"The Python packages cannot be fetched:\n{said}",
        f"Mend the requirements file; every image also has what {WANTED.name} of vm_kernel.image asks for.",
    )


def _pinned(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{name.lower().replace('_', '-')}=={version} --hash=sha256:{digest}"


def write_lock() -> None:
    """Resolve ``requirements.in`` and write ``requirements.lock``. For developers, when packages are to be upgraded."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheels = work / "wheels"
        wheels.mkdir()
        _download(["-r", str(WANTED)], wheels, work, lambda stage, fraction: print(stage))
        pins = sorted(_pinned(wheel) for wheel in wheels.iterdir())
    note = f"# Python {PYTHON}, x86-64 Linux. Written by: python -m vm_kernel.image.wheels\n"
    LOCK.write_text(note + "".join(pin.replace(" --hash", " \\\n    --hash") + "\n" for pin in pins))


if __name__ == "__main__":
    write_lock()
