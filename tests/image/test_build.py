"""Building: an image of one's own works in a notebook; wrong wishes are refused early; nothing is left half-made."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
import psutil
import pytest

from tests.conftest import wait_until
from vm_kernel.errors import ImageError
from vm_kernel.image import build, debian, store, wheels

COMMAND = [sys.executable, "-m", "vm_kernel.cli"]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty VM_KERNEL_HOME, readable for the user that the pool service becomes if we are root."""
    folder = Path(tempfile.mkdtemp(prefix="vmk-"))
    folder.chmod(0o755)
    monkeypatch.setenv("VM_KERNEL_HOME", str(folder))
    for name in ("VM_KERNEL_IMAGES", "VM_KERNEL_GOLDEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    yield folder
    subprocess.run([*COMMAND, "pool", "stop"], check=False, capture_output=True)
    shutil.rmtree(folder)


def vm_kernel(*arguments: str | Path) -> str:
    """Run the command, which must succeed; its standard output."""
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start_build(*arguments: str) -> subprocess.Popen[str]:
    """Start a build as a terminal would."""
    return subprocess.Popen(
        [*COMMAND, "image", "build", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def build_folders(home: Path) -> list[Path]:
    """The folders of builds that go on or were killed."""
    return list((home / "images").glob(".build-*"))


def processes_in(folder: Path) -> list[psutil.Process]:
    """Living processes that were started for a build there."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words: Sequence[str] = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in words):
            found.append(process)
    return found


def wait_for_bootstrap(home: Path) -> Path:
    """Wait until Debian is being unpacked; the build's folder."""
    wait_until(lambda: any((home / "images").glob(".build-*/mmdebstrap.*/usr")), 100, "the bootstrap")
    return build_folders(home)[0]


@pytest.mark.timeout(900)
def test_an_image_with_packages_of_ones_own(home: Path) -> None:
    (home / "requirements.txt").write_text("humanize>=4\n")
    vm_kernel("image", "build", "--name", "own", "--requirements", home / "requirements.txt", "--apt", "bc")

    image = store.open_image("own")
    store.verify_image(image)
    assert image.manifest.apt == ["bc"]
    assert "bc" in image.manifest.debian_packages
    (pinned,) = (text for text in image.manifest.requirements if text.startswith("humanize=="))
    assert "--hash=sha256:" in pinned
    assert image.manifest.kernel_info["language_info"]["version"] == image.manifest.python_version
    assert build_folders(home) == []

    (home / "jupyter_config_dir").mkdir()
    (home / "jupyter_config_dir/vm_kernel_config.py").write_text("c.PoolConfig.image = 'own'")
    cell = "import humanize\nprint(humanize.intcomma(12345))\n!echo 6*7 | bc"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    notebook.metadata["kernelspec"] = {"name": "vm-sandbox", "display_name": "VM Sandbox", "language": "python"}
    nbformat.write(notebook, home / "own.ipynb")
    vm_kernel("install")
    vm_kernel("run", "--output-dir", home / "out", home / "own.ipynb")
    (ran,) = nbformat.read(home / "out/own.ipynb", as_version=4).cells
    assert "".join(output["text"] for output in ran.outputs).split() == ["12,345", "42"]

    listed = json.loads(vm_kernel("image", "list", "--json"))
    assert [entry["name"] for entry in listed["images"]] == ["own"]
    assert "humanize" in vm_kernel("image", "show", "own")
    vm_kernel("image", "rm", "own")
    assert not image.folder.exists()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(home: Path, number: signal.Signals) -> None:
    process = start_build()
    folder = wait_for_bootstrap(home)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in output
    assert not folder.exists()
    assert processes_in(folder) == []
    assert store.list_images() == []


@pytest.mark.timeout(300)
def test_a_killed_build_is_cleared_by_the_next(home: Path) -> None:
    process = start_build()
    folder = wait_for_bootstrap(home)
    assert build.remove_leftovers() == 0, "a build that goes on was taken for a leftover"
    process.kill()
    process.communicate(timeout=60)
    wait_until(lambda: processes_in(folder) == [], 60.0, "the end of the build's processes")
    assert build_folders(home) == [folder]
    assert build.remove_leftovers() == 1
    assert build_folders(home) == []


@pytest.mark.parametrize(
    "line",
    ["git+https://example.org/x.git", "-e .", "./local", "/abs/x.whl", "x @ https://example.org/x.whl", "file:///x"],
)
def test_requirements_are_names_of_packages(home: Path, line: str) -> None:
    path = home / "requirements.txt"
    path.write_text(f"numpy\n{line}\n")
    with pytest.raises(ImageError, match="line 2"):
        build.build_image("own", requirements=path)
    assert not (home / "images").exists()


def test_a_requirements_file_that_is_not_there(home: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        build.build_image("own", requirements=home / "nothing.txt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no-such-package-of-vm-sandbox\n", "has no wheel for Python 3.11"),
        ("not a requirement\n", "Invalid requirement"),
        ("ipykernel<5\n", "ResolutionImpossible"),
    ],
)
def test_requirements_that_cannot_be_had(home: Path, text: str, said: str) -> None:
    (home / "requirements.txt").write_text(text)
    with pytest.raises(ImageError, match=said):
        build.build_image("own", requirements=home / "requirements.txt")
    assert build_folders(home) == []


@pytest.mark.parametrize("package", ["--option", "?essential", "a b", "Git", "x;y", ""])
def test_apt_takes_names_alone(home: Path, package: str) -> None:
    with pytest.raises(ImageError, match="not the name of a Debian package"):
        build.build_image("own", apt=[package])


def test_every_package_of_the_lock_has_a_version_and_a_hash() -> None:
    lines = wheels.LOCK.read_text().splitlines()
    assert len(lines) == 1 + 2 * len(wheels.locked())
    names = {package.partition("==")[0] for package in wheels.locked()}
    assert {"ipykernel", "ipywidgets", "numpy", "pandas", "matplotlib", "pyzmq"} <= names


def test_a_kernel_that_is_packed_in_another_way_is_taken_as_it_is() -> None:
    other = bytearray(4096)
    struct.pack_into("<II", other, 0x248, 0, 100)
    assert debian.uncompressed(bytes(other)) == bytes(other)
    assert store.open_image().kernel.stat().st_size > 30_000_000
