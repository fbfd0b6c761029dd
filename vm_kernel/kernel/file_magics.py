"""``%vm_put`` and ``%vm_get``: files between the notebook's folder on the host and its VM.

Notebooks are not trusted, and cells are theirs. So nothing is allowed unless the profile says so (``files``), and then
only below the folder in which the kernel was started, by names without a leading dot, without following a link, and
without replacing a file of the host unless the user writes ``--force``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from guest_agent.names import Patterns, TreeError, path_parts
from guest_agent.tree_reader import kind_of, open_folder
from guest_agent.tree_writer import TreeWriter
from vm_kernel.errors import FilesystemError
from vm_kernel.guest.file_channel import host_errors, printable
from vm_kernel.kernel.hostcall import HostCall
from vm_kernel.kernel.magic_arguments import Parser
from vm_kernel.kernel.transfers import CallTransfer, Data, ProgressBar, report

_RULES = (
    "Works below the notebook's folder only, without links and hidden files, and only if the profile allows it: "
    "c.PoolConfig.files = 'off' (the default), 'get' or 'both' in vm_kernel_config.py."
)


def put(call: HostCall) -> Data:
    """``%vm_put SOURCE [TARGET]``: copy a file or folder from the notebook's folder into the VM."""
    parser = Parser("vm_put", f"Copy a file or folder from the notebook's folder into its VM. {_RULES}")
    parser.add_argument("source", help="file or folder on the host, relative to the notebook's folder")
    parser.add_argument(
        "target", nargs="?", help="in the VM, relative to where code begins, or absolute; DIR/ puts it into that folder"
    )
    options = parser.options(call.arguments)
    _check_allowed(call, "both")
    parts = _host_parts(options.source)
    target = _target(options.target, parts)
    transfer = CallTransfer(call, ProgressBar(call, f"{options.source} to the VM").show)
    with _host_folder(parts[:-1]) as folder:
        with host_errors(options.source):
            kind = kind_of(folder, parts[-1]) if parts else "folder"
        if kind != "folder":
            done = transfer.put_file(folder, parts[-1], target)
        else:
            with host_errors(options.source):
                root = open_folder(folder, parts[-1:])
            try:
                done = transfer.put_tree(root, target, Patterns())
            finally:
                os.close(root)
    return report(f"{options.source} is in the VM as {target}", done.transfer)


def get(call: HostCall) -> Data:
    """``%vm_get SOURCE [TARGET]``: copy a file or folder from the VM into the notebook's folder."""
    parser = Parser("vm_get", f"Copy a file or folder from the VM into the notebook's folder. {_RULES}")
    parser.add_argument("source", help="file or folder in the VM, relative to where code begins, or absolute")
    parser.add_argument(
        "target", nargs="?", help="on the host, relative to the notebook's folder; DIR/ puts it into that folder"
    )
    parser.add_argument(
        "--pattern", action="append", metavar="GLOB", help="of a folder, only these, such as '**/*.csv'; repeatable"
    )
    parser.add_argument("--force", action="store_true", help="replace files of the host that are there already")
    options = parser.options(call.arguments)
    _check_allowed(call, "get")
    source, patterns = _guest_parts(options.source), _patterns(options.pattern)
    target = _host_parts(_target(options.target, source))
    kind = CallTransfer(call).kind(options.source)
    transfer = CallTransfer(call, ProgressBar(call, f"{options.source} from the VM").show)
    shown = "/".join(target) or "."
    if kind != "folder" and not target:
        raise FilesystemError(f"{shown}: is a folder, not a file.", path=shown)
    try:
        with _host_folder([]) as folder, host_errors(shown):
            into = target if kind == "folder" else target[:-1]
            writer = TreeWriter(folder, into, transfer.limits, patterns, overwrite=options.force)
            if kind == "folder":
                done = transfer.get_tree(options.source, writer, patterns)
            else:
                done = transfer.get_file(options.source, writer, target[-1])
    except FilesystemError as error:
        if error.message.endswith("is there already."):
            raise FilesystemError(error.message, "--force replaces files of the host.", error.path) from None
        raise
    return report(f"{options.source} is in the notebook's folder as {shown}", done)


def _check_allowed(call: HostCall, wanted: str) -> None:
    """Raises FilesystemError unless the profile's rule allows it."""
    vm = call.vm
    rule, profile = (vm.files, vm.profile) if vm is not None else ("off", "default")
    if rule != "both" and rule != wanted:
        where = f"c.PoolConfig.files = {wanted!r}"
        if profile != "default":
            where = f"'files': {wanted!r} in the profile {profile!r} of c.PoolConfig.profiles"
        raise FilesystemError(
            f"%{call.name} is not allowed for this kernel: a notebook must not touch the host's files by itself.",
            f"If you trust the notebooks that run in it: {where} in vm_kernel_config.py, then `vm-kernel pool reload`, "
            "and restart the kernel.",
        )


def _host_parts(path: str) -> list[str]:
    """The components of a path below the notebook's folder. Raises FilesystemError for any other."""
    absolute, parts = _parts(path)
    if absolute:
        raise FilesystemError(f"{printable(path)}: is not below the notebook's folder.", path=path)
    if any(part.startswith(".") for part in parts):
        raise FilesystemError(f"{printable(path)}: hidden files stay where they are.", path=path)
    return parts


def _guest_parts(path: str) -> list[str]:
    return _parts(path)[1]


def _parts(path: str) -> tuple[bool, list[str]]:
    try:
        return path_parts(path)
    except TreeError as error:
        raise FilesystemError(f"{printable(path)}: {error.reason}.", path=path) from None


def _target(target: str | None, source: list[str]) -> str:
    """Where something goes: by its own name, unless another one is given."""
    name = source[-1] if source else "."
    if target is None:
        return name
    return target + name if target.endswith("/") else target


def _patterns(patterns: list[str] | None) -> Patterns:
    try:
        return Patterns(patterns or ["**"])
    except TreeError as error:
        raise FilesystemError(f"--pattern: {error.reason}.") from None


@contextmanager
def _host_folder(parts: list[str]) -> Iterator[int]:
    """A folder below the notebook's, reached without following a link."""
    with host_errors("/".join(parts) or "."):
        anchor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            folder = open_folder(anchor, parts)
        finally:
            os.close(anchor)
    try:
        yield folder
    finally:
        os.close(folder)
