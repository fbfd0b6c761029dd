"""The files of ``vm-kernel run --input DIR --collect PATTERN``, in the kernel process of a notebook that it runs.

The command tells by the environment what it was told on its command line, and asks with two magics of no use elsewhere.
A notebook may write them, too, and gets nothing by it: they do what the person who runs it has asked for anyway.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from guest_agent.names import Patterns
from guest_agent.tree_writer import TreeWriter
from vm_kernel.errors import FilesystemError
from vm_kernel.guest.file_channel import host_errors
from vm_kernel.kernel.hostcall import HostCall
from vm_kernel.kernel.transfers import CallTransfer, Data, report

#: {"input": folder or null, "collect": patterns, "output": folder}, paths absolute
ENVIRONMENT = "VM_KERNEL_RUN_FILES"


def put_input(call: HostCall) -> Data:
    """``%vm_run_input``: the files of --input, into the folder where code begins."""
    source = Path(_told(call)["input"])
    with host_errors(str(source)):
        root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return report(f"{source} is in the VM", CallTransfer(call).put_tree(root, ".", Patterns()).transfer)
    finally:
        os.close(root)


def collect(call: HostCall) -> Data:
    """``%vm_run_collect``: the files that --collect means, into the output folder."""
    told = _told(call)
    target, patterns = Path(told["output"]), Patterns(told["collect"])
    transfer = CallTransfer(call)
    with host_errors(str(target)):
        anchor = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            writer = TreeWriter(anchor, target.resolve().parts[1:], transfer.limits, patterns)
        finally:
            os.close(anchor)
    return report(f"Collected into {target}", transfer.get_tree(".", writer, patterns))


def _told(call: HostCall) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(os.environ.get(ENVIRONMENT, "{}"))
    if not told:
        raise FilesystemError(f"%{call.name} is for `vm-kernel run`.", "Use %vm_put and %vm_get.")
    return told
