"""``vm-kernel image build|list|show|rm``: the parsers and what they run. Errors are raised; the command prints them."""

from __future__ import annotations

import argparse
import json
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from vm_kernel.image import store
from vm_kernel.image.store import Image

if TYPE_CHECKING:
    from argparse import _SubParsersAction

INTERRUPTED = 130


def add_image_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``image`` to the command. Each action sets ``run``, which takes the arguments and returns the exit status.

    ``vm_kernel.cli`` calls it while it sets up its parser.
    """
    parser = subparsers.add_parser("image", help="build and manage guest images")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")

    build = actions.add_parser("build", help="build an image (about a minute)")
    build.add_argument("--name", default="default", help="name of the image (default: %(default)s)")
    build.add_argument("--requirements", type=Path, metavar="FILE", help="Python packages in addition, wheels only")
    build.add_argument(
        "--apt", nargs="+", action="extend", default=[], metavar="PKG", help="Debian packages in addition"
    )
    build.set_defaults(run=run_build)

    listing = actions.add_parser("list", help="list the images")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)

    show = actions.add_parser("show", help="show what is in an image")
    show.add_argument("name", nargs="?", default="default", help="name or digest (default: %(default)s)")
    show.add_argument("--json", action="store_true", help="print the manifest")
    show.add_argument("--verify", action="store_true", help="also compare the files with their digests")
    show.set_defaults(run=run_show)

    remove = actions.add_parser("rm", help="remove images")
    remove.add_argument("names", nargs="+", metavar="NAME", help="name or digest")
    remove.set_defaults(run=run_remove)


def run_build(arguments: argparse.Namespace) -> int:
    """``vm-kernel image build``: a bar for each part of the build, then one line about the image."""
    from vm_kernel.image.build import build_image

    console = Console()
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _Bars(console) as bars:
            image = build_image(arguments.name, arguments.requirements, arguments.apt, bars.progress)
    except KeyboardInterrupt:
        console.print("Interrupted; the store is as it was before.")
        return INTERRUPTED
    took = time.monotonic() - started
    console.print(f"Image {image.name}: {image.digest[:12]}, {_megabytes(image.size)}, in {took:.0f} s.")
    return 0


def run_list(arguments: argparse.Namespace) -> int:
    """``vm-kernel image list``: a table of the images, and why others cannot be used. Status 1 if there are such."""
    images = store.list_images()
    damaged = store.list_damaged()
    if arguments.json:
        print(json.dumps({"images": [_facts(image) for image in images], "damaged": [str(error) for error in damaged]}))
        return 1 if damaged else 0
    console = Console()
    if images:
        console.print(_table(images))
    elif not damaged:
        console.print("There are no images. Build one with: vm-kernel image build")
    for error in damaged:
        console.print(f"{error.message}\n  -> {error.hint}", style="red", markup=False, soft_wrap=True)
    return 1 if damaged else 0


def run_show(arguments: argparse.Namespace) -> int:
    """``vm-kernel image show``: what is in one image."""
    image = store.open_image(arguments.name)
    if arguments.verify:
        store.verify_image(image)
    if arguments.json:
        print(json.dumps(asdict(image.manifest) | {"digest": image.digest}, indent=1, sort_keys=True))
        return 0
    manifest = image.manifest
    table = Table(show_header=False, box=None)
    rows = {
        "name": image.name or "(none)",
        "digest": image.digest,
        "folder": str(image.folder),
        "built": manifest.created_at,
        "Debian": f"{manifest.debian_version} ({manifest.debian_release}), {len(manifest.debian_packages)} packages",
        "kernel": f"Linux {manifest.kernel_version}",
        "Python": f"{manifest.python_version}, {len(manifest.python_packages)} packages",
        "ipykernel": f"protocol {manifest.kernel_info.get('protocol_version')}",
        "files": ", ".join(f"{name} {_megabytes(facts.size)}" for name, facts in sorted(manifest.files.items())),
        "--apt": " ".join(manifest.apt) or "(none)",
        "packages": ", ".join(f"{name} {version}" for name, version in sorted(manifest.python_packages.items())),
    }
    for name, value in rows.items():
        table.add_row(f"[bold]{name}", value)
    Console().print(table)
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """``vm-kernel image rm``: remove each; the first that is not there ends the command with its error."""
    for name in arguments.names:
        store.remove_image(name)
        print(f"Removed {name}.")
    return 0


class _Bars:
    """Turns the builder's "Part: detail" and fraction into one progress bar for each part.

    Where output is no terminal, there is a line for each part that is done.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.fields[part]:7}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def progress(self, stage: str, fraction: float) -> None:
        """The builder calls this."""
        part, _, detail = stage.partition(": ")
        if part not in self._tasks:
            self._tasks[part] = self._bars.add_task(detail, total=1.0, part=part)
        self._bars.update(self._tasks[part], completed=fraction, description=detail)
        if fraction >= 1.0 and not self._console.is_terminal:
            self._console.print(f"{part}: {detail}")


def _table(images: list[Image]) -> Table:
    table = Table("name", "digest", "size", "built", "Debian", "Python", "additions")
    for image in images:
        manifest = image.manifest
        table.add_row(
            image.name or "-",
            image.digest[:12],
            _megabytes(image.size),
            manifest.created_at[:16].replace("T", " "),
            manifest.debian_version,
            manifest.python_version,
            " ".join(_additions(image)) or "-",
        )
    return table


def _additions(image: Image) -> list[str]:
    """What an image has beyond the default one: Debian packages, then Python packages."""
    from vm_kernel.image.wheels import locked

    usual = {package.partition("==")[0] for package in locked()}
    names = [requirement.partition("==")[0] for requirement in image.manifest.requirements]
    return [*image.manifest.apt, *(name for name in names if name not in usual)]


def _facts(image: Image) -> dict[str, object]:
    return {
        "name": image.name,
        "digest": image.digest,
        "folder": str(image.folder),
        "size": image.size,
        "created_at": image.manifest.created_at,
        "apt": image.manifest.apt,
    }


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
