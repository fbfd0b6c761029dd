"""The Python API: code in a throw-away VM, for scripts and AI agents.

::

    async with Sandbox() as box:
        result = await box.execute("print(6 * 7)", timeout=10)
        print(result.stdout)

``SyncSandbox`` is the same without ``async``. Both use the pool service that the notebooks of this user use, and start
it if need be.
"""

from vm_kernel.guest.files import FileEntry, Transfer
from vm_kernel.sandbox.files import FilesystemShare, SyncFilesystemShare
from vm_kernel.sandbox.pool import PooledVM, VMPool
from vm_kernel.sandbox.result import ErrorOutput, ExecutionResult, Output, RichOutput, StreamOutput
from vm_kernel.sandbox.sandbox import Sandbox
from vm_kernel.sandbox.snapshots import Snapshot, SnapshotManager
from vm_kernel.sandbox.sync import SyncSandbox

__all__ = [
    "ErrorOutput",
    "ExecutionResult",
    "FileEntry",
    "FilesystemShare",
    "Output",
    "PooledVM",
    "RichOutput",
    "Sandbox",
    "Snapshot",
    "SnapshotManager",
    "StreamOutput",
    "SyncFilesystemShare",
    "SyncSandbox",
    "Transfer",
    "VMPool",
]
