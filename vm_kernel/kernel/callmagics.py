"""Host magics that work on this session's VM: which function evaluates which. Imported when one of them is used."""

from __future__ import annotations

from collections.abc import Callable

from vm_kernel.kernel import checkpoint_magics, file_magics, run_files
from vm_kernel.kernel.hostcall import HostCall
from vm_kernel.kernel.magic_arguments import Usage

Data = dict[str, str]

_MAGICS: dict[str, Callable[[HostCall], Data]] = {
    "checkpoint": checkpoint_magics.checkpoint,
    "checkpoints": checkpoint_magics.checkpoints,
    "rollback": checkpoint_magics.rollback,
    "vm_put": file_magics.put,
    "vm_get": file_magics.get,
    "vm_run_input": run_files.put_input,
    "vm_run_collect": run_files.collect,
}


def evaluate(call: HostCall) -> Data:
    """Do what the magic says and show what came of it; called in a thread of its own.

    Raises VMKernelError, with which the cell then fails.
    """
    try:
        data = _MAGICS[call.name](call)
    except Usage as usage:
        if usage.wrong:
            raise usage.as_error() from None
        data = {"text/plain": str(usage)}
    call.show(data)
    return data
