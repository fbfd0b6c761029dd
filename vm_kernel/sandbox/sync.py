"""``SyncSandbox``: the same VM for code that is not asynchronous."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from vm_kernel.errors import SandboxClosed
from vm_kernel.pool.protocol import VMFacts
from vm_kernel.sandbox.files import FilesystemShare, SyncFilesystemShare
from vm_kernel.sandbox.result import ExecutionResult, Output
from vm_kernel.sandbox.sandbox import Sandbox
from vm_kernel.sandbox.snapshots import SyncSnapshotManager

T = TypeVar("T")


class SyncSandbox:
    """``with SyncSandbox() as box``: a Sandbox whose methods block. Arguments, results and errors are Sandbox's.

    It has an event loop in a thread of its own, in which ``on_output`` and ``on_waiting`` are called. Its methods may
    be called from any other thread; executions take turns. ``files`` copies files, see FilesystemShare; ``snapshots``
    saves states, see SnapshotManager.
    """

    def __init__(self, profile: str = "default", **options: Any) -> None:
        self._options = {"profile": profile, **options}
        self._box: Sandbox | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.files = SyncFilesystemShare(self._call_files)
        self.snapshots = SyncSnapshotManager(lambda work: self._call(work(self._open().snapshots)))

    def __enter__(self) -> SyncSandbox:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def vm(self) -> VMFacts | None:
        """Facts about the VM; None if there is none."""
        return self._box.vm if self._box is not None else None

    def start(self) -> None:
        """Take a VM from the pool. Raises as Sandbox.start()."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="sandbox", daemon=True)
            self._thread.start()
            self._box = Sandbox(**self._options)
        assert self._box is not None
        try:
            self._call(self._box.start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the VM back and end the thread. Safe to call twice."""
        if self._loop is None or self._box is None:
            return
        self._call(self._box.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join()
        self._loop = self._box = self._thread = None

    def restart(self) -> None:
        """Take a new VM in the golden snapshot's state."""
        self._call(self._open().restart())

    def execute(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_output: Callable[[Output], None] | None = None,
    ) -> ExecutionResult:
        """Run code and wait for its end, see Sandbox.execute(). Ctrl-C interrupts the code, and is raised here."""
        return self._call(self._open().execute(code, timeout=timeout, on_output=on_output))

    def fork(self, count: int = 1) -> list[SyncSandbox]:
        """Sandboxes that go on from this very state, see Sandbox.fork(). They are started: close each."""
        token = self._call(self._open().save_fork())
        try:
            name = self._options.get("name") or f"sandbox-{os.getpid()}"
            children = [
                SyncSandbox(**self._options | {"name": f"{name}-fork-{number + 1}", "fork": token})
                for number in range(count)
            ]
            try:
                with ThreadPoolExecutor(max(1, count)) as threads:
                    list(threads.map(SyncSandbox.start, children))
            except BaseException:
                for child in children:
                    child.close()
                raise
        finally:
            self._call(self._open().drop_fork(token))
        return children

    def interrupt(self) -> None:
        """Interrupt what another thread executes."""
        box = self._open()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(box.interrupt)

    def _call_files(self, work: Callable[[FilesystemShare], Coroutine[Any, Any, T]]) -> T:
        return self._call(work(self._open().files))

    def _open(self) -> Sandbox:
        if self._box is None:
            raise SandboxClosed("The sandbox is closed.", "Use `with SyncSandbox()`, or call start().")
        return self._box

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a SyncSandbox cannot be used from its own on_output or on_waiting")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """In the thread."""
    loop.run_forever()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
