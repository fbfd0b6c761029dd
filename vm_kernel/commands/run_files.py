"""``vm-kernel run --input DIR --collect PATTERN``: files for the VM of a notebook that nbclient executes.

The VM is the kernel process's. It is told by its environment, which no notebook can change, what the command line asks
for, and does it when two hidden cells say so: one before the first cell, one after the last (see
``vm_kernel.kernel.run_files``). So this works whatever the profile allows to notebooks.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbclient.util import ensure_async

from guest_agent.names import Patterns, TreeError
from vm_kernel.errors import ConfigError, FilesystemError
from vm_kernel.kernel.run_files import ENVIRONMENT

if TYPE_CHECKING:
    from vm_kernel.commands.run import Files

#: seconds that a cell which was interrupted because its time was up has, before files are collected
INTERRUPT_S = 10.0


def check(source: Path | None, patterns: list[str], output_dir: Path | None, is_ours: bool) -> None:
    """Before anything runs. Raises ConfigError for what cannot work."""
    if not is_ours:
        raise ConfigError("--input and --collect need a kernel of vm-kernel.", "Leave --kernel out.")
    if source is not None and not source.is_dir():
        raise ConfigError(f"There is no folder {source}.", "Check --input.")
    if patterns and output_dir is None:
        raise ConfigError("--collect needs a folder for the files.", "Add --output-dir DIR.")
    try:
        Patterns(patterns)
    except TreeError as error:
        raise ConfigError(f"--collect: {error}.", "A pattern is relative, such as 'out/*.csv'.") from None


class Client(NotebookClient):
    """A NotebookClient that brings files to the VM before the first cell and fetches some after the last."""

    files: Files | None = None
    #: why files were not collected after a failed cell
    not_collected = ""
    #: called when files have been copied: what was done, and the seconds that it took
    on_copied: Callable[[str, float], object] = staticmethod(lambda what, seconds: None)

    def start_options(self) -> dict[str, Any]:
        """Further arguments of ``execute``: the kernel's environment."""
        if self.files is None:
            return {}
        source = self.files.input
        told = {
            "input": str(source.resolve()) if source else None,
            "collect": self.files.collect,
            "output": str(self.files.output.resolve()),
        }
        return {"env": {**os.environ, ENVIRONMENT: json.dumps(told)}}

    @asynccontextmanager
    async def async_setup_kernel(self, **options: Any) -> AsyncGenerator[None, None]:
        """nbclient's, with the files around what it executes."""
        async with super().async_setup_kernel(**options):
            if self.files is not None and self.files.input is not None:
                await self._copy("%vm_run_input", "files into the VM")
            try:
                yield
            except DeadKernelError:
                raise
            except Exception as error:
                await self._collect_after(error)
                raise
            else:
                await self._collect()

    async def _collect_after(self, error: Exception) -> None:
        """A cell has failed, and that is what is to be told. A kernel that is gone has nothing to be collected."""
        if self.km is None or self.kc is None or not await ensure_async(self.km.is_alive()):
            return
        try:
            if isinstance(error, CellTimeoutError):
                await ensure_async(self.km.interrupt_kernel())
                async with asyncio.timeout(INTERRUPT_S):
                    await self._ask("")
            await self._collect()
        except TimeoutError:
            self.not_collected = "the cell did not stop when it was interrupted"
        except FilesystemError as failed:
            self.not_collected = failed.message

    async def _collect(self) -> None:
        if self.files is not None and self.files.collect:
            await self._copy("%vm_run_collect", "files out of the VM")

    async def _copy(self, magic: str, what: str) -> None:
        begin = time.monotonic()
        content = await self._ask(magic)
        while content["status"] == "aborted":  # it came while ipykernel threw away what was behind a failed cell
            content = await self._ask(magic)
        if content["status"] != "ok":
            raise FilesystemError(str(content.get("evalue")).partition("\n")[0])
        self.on_copied(what, time.monotonic() - begin)

    async def _ask(self, magic: str) -> dict[str, Any]:
        """Run a hidden cell; the content of its reply. Raises DeadKernelError."""
        assert self.kc is not None
        assert self.km is not None
        client: Any = self.kc
        asked = client.execute(magic, silent=True, store_history=False, allow_stdin=False, stop_on_error=False)
        while True:
            try:
                message = await client.get_shell_msg(timeout=1.0)
            except queue.Empty:
                if not await ensure_async(self.km.is_alive()):
                    raise DeadKernelError("Kernel died") from None
                continue
            if message["parent_header"].get("msg_id") == asked:
                content: dict[str, Any] = message["content"]
                return content
