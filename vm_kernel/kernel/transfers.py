"""File transfers of host magics: the guest by way of a HostCall, and the bar that shows how far it is."""

from __future__ import annotations

import html
import time

from guest_agent.file_link import Message, parse
from guest_agent.frames import Kind
from guest_agent.names import Limits
from vm_kernel.errors import VMDied, VMError
from vm_kernel.guest.file_channel import STALL_S, FileChannel, Progress, Stalled
from vm_kernel.guest.files import FileRequest, Transfer
from vm_kernel.kernel.hostcall import HostCall

Data = dict[str, str]

#: seconds between two pictures of a progress bar
_SHOW_EVERY_S = 0.2
#: files that were left out and are named
MAX_LEFT_OUT = 100


class CallTransfer(FileRequest):
    """A request about files in the thread of a host magic."""

    def __init__(self, call: HostCall, progress: Progress | None = None) -> None:
        channel = FileChannel(lambda parts: call.send(Kind.FILES, parts), lambda fields: call.note("files", fields))
        super().__init__(channel, Limits(), progress)
        self._call = call

    def receive(self) -> Message:
        """The next message of this request; the loop bounds what waits, see HostCall. Raises Interrupted, VMDied."""
        while True:
            try:
                kind, body = self._call.receive(STALL_S)
            except VMDied:
                raise
            except VMError:
                raise Stalled from None
            message = parse(body)
            if kind is Kind.FILES and self.is_mine(message):
                return message


class ProgressBar:
    """The output of a cell while files are copied."""

    def __init__(self, call: HostCall, title: str) -> None:
        self._call = call
        self._title = title
        self._shown_at = 0.0

    def show(self, done: int, total: int) -> None:
        """Show how many bytes have been copied, now and then. Raises Interrupted."""
        self._call.check_interrupt()
        now = time.monotonic()
        if now - self._shown_at < _SHOW_EVERY_S:
            return
        self._shown_at = now
        text = f"{self._title}: {size(done)} of {size(total)}"
        bar = f'<progress value="{done}" max="{max(1, total)}" style="width: 20em"></progress>'
        self._call.show({"text/plain": text, "text/html": f"{bar} {html.escape(text)}"})


def report(what: str, transfer: Transfer) -> Data:
    """What has been copied, and what has been left out."""
    files = "1 file" if transfer.files == 1 else f"{transfer.files} files"
    lines = [f"{what}: {files}, {size(transfer.bytes)}."]
    lines += [f"Left out: {name} ({why})" for name, why in transfer.skipped[:MAX_LEFT_OUT]]
    if len(transfer.skipped) > MAX_LEFT_OUT:
        lines.append(f"Left out: {len(transfer.skipped) - MAX_LEFT_OUT} more")
    page = "<br>".join(html.escape(line) for line in lines)
    return {"text/plain": "\n".join(lines), "text/html": page}


def size(count: int) -> str:
    """Bytes in words."""
    if count < 10_000:
        return f"{count} bytes"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"
