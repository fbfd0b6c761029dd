"""VM Sandbox: a Jupyter kernel whose cells run inside a throw-away virtual machine.

This module imports nothing heavy: the kernel process is started for every notebook and must be quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vm_kernel.guest.asyncio_stream import VsockProtocol
    from vm_kernel.sandbox import (
        ExecutionResult,
        FilesystemShare,
        PooledVM,
        Sandbox,
        SnapshotManager,
        SyncSandbox,
        VMPool,
    )

__version__ = "0.1.0"

__all__ = [
    "ExecutionResult",
    "FilesystemShare",
    "PooledVM",
    "Sandbox",
    "SnapshotManager",
    "SyncSandbox",
    "VMPool",
    "VsockProtocol",
    "__version__",
    "load_ipython_extension",
]


def __getattr__(name: str) -> Any:
    """The Python API, imported when it is used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vm_kernel import sandbox
    from vm_kernel.guest import asyncio_stream

    return getattr(asyncio_stream if name == "VsockProtocol" else sandbox, name)


def load_ipython_extension(shell: Any) -> None:
    """Register the host magics in an IPython session. IPython calls this for ``%load_ext vm_kernel``."""
    from vm_kernel.kernel.magics import register

    register(shell)
