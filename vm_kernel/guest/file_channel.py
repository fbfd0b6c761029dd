"""The host's end of file transfers with one guest: whose turn it is, messages to wait for, and what can go wrong.

No sockets here. Whoever has the guest stream makes one ``FileChannel`` for it, hands it the FILES messages that arrive
and sends those that it is given. What is asked for is in files.py; the protocol is in ``guest_agent/file_link.py``.
Everything that arrives is hostile input.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from guest_agent.file_link import WINDOW, Link, Message, Remote, parse
from guest_agent.frames import FrameError
from guest_agent.names import Limits, TreeError, path_parts, reason_of
from vm_kernel.errors import FilesystemError, VMError, VMKernelError

#: seconds without a word from the guest after which a transfer fails
STALL_S = 120.0
#: requests that are noted, and as what
_NOTED = {"put": "put", "get": "get", "read": "get"}

#: called with the bytes that have been copied and the bytes there are in all
Progress = Callable[[int, int], None]


class FileChannel:
    """The FILES messages of one guest stream. ``send`` takes the parts of one; it is called from any thread.

    So is ``note``: with the fields of a note about each transfer for the pool service, see ``pool/notes.py``.
    """

    def __init__(
        self, send: Callable[[list[bytes]], object], note: Callable[[dict[str, Any]], object] = lambda fields: None
    ) -> None:
        self.send = send
        self.note = note
        self.busy = threading.Lock()
        self.current: Request | None = None
        self.cause: VMKernelError | None = None

    def feed(self, body: bytes) -> None:
        """A FILES message has arrived. Never blocks. Raises FrameError if the guest has broken the protocol."""
        message = parse(body)
        request = self.current
        if request is not None:
            request.feed(message)

    def fail(self, cause: VMKernelError) -> None:
        """There is no VM any more: what is under way, and what is asked later, raises ``cause``."""
        self.cause = cause
        request = self.current
        if request is not None:
            request.wake()


class Request:
    """One request, in a thread of its own that may wait. ``cancel`` from any thread. Requests take turns."""

    def __init__(self, channel: FileChannel, limits: Limits, progress: Progress | None = None) -> None:
        self._channel = channel
        self.limits = limits
        self._progress = progress
        self._number = -1
        self._inbox: deque[Message] = deque()
        self._waiting = 0
        self._news = threading.Condition()
        self._cancelled = False
        #: what has been copied so far
        self.files = 0
        self.bytes = 0
        #: for the note, if it is not the path that the guest is asked for
        self.noted_path = ""

    # ---- from other threads

    def cancel(self) -> None:
        """Give it up: the blocking call raises FilesystemError soon, and leaves nothing half done."""
        with self._news:
            self._cancelled = True
            self._news.notify()

    def wake(self) -> None:
        """The channel has news."""
        with self._news:
            self._news.notify()

    def feed(self, message: Message) -> None:
        """A message has arrived. Raises FrameError if the guest sends more than its window allows."""
        if not self.is_mine(message):
            return
        with self._news:
            self._waiting += message.size
            if self._waiting > 2 * WINDOW:
                raise FrameError("more of a file than was asked for")
            self._inbox.append(message)
            self._news.notify()

    def is_mine(self, message: Message) -> bool:
        """False for what is left of a request that was given up."""
        return bool(message.fields.get("id") == self._number)

    # ---- what Link needs

    def send(self, parts: list[bytes]) -> None:
        """Hand a message on. Raises FilesystemError if the request was given up, or what ended the VM."""
        self._check()
        self._channel.send(parts)

    def receive(self) -> Message:
        """Wait for the next message."""
        with self._news:
            if not self._news.wait_for(self._has_news, STALL_S):
                raise Stalled
            self._check()
            message = self._inbox.popleft()
            self._waiting -= message.size
            return message

    def put_back(self, message: Message) -> None:
        """A request of the guest: it has none to make."""
        raise FrameError("a FILES message that is out of place")

    def _has_news(self) -> bool:
        return bool(self._inbox) or self._cancelled or self._channel.cause is not None

    def _check(self) -> None:
        if self._channel.cause is not None:
            raise self._channel.cause
        if self._cancelled:
            raise FilesystemError("The transfer was given up.")

    def tell(self, done: int, total: int) -> None:
        """Progress, for whoever wants to know."""
        self.bytes = done
        if self._progress is not None:
            self._progress(done, total)

    @contextmanager
    def ask(self, operation: str, path: str, **fields: Any) -> Iterator[Link]:
        """Asks the guest, and turns all that can go wrong into our errors; whatever it is, the guest is told."""
        check_path(path or ".")
        begin, status = time.monotonic(), "error"
        with self._channel.busy:
            self._number = secrets.randbits(53)  # a restored VM may still be busy with one of another life
            self._channel.current = self
            try:
                link = Link(self, self._number)
                link.send({"op": operation, "path": path, "limits": list(self.limits), **fields})
                with host_errors(path):
                    yield link
                status = "ok"
            except Remote as error:
                said = printable(error.path or path)
                raise FilesystemError(
                    f"{said}: {printable(error.reason)} (in the virtual machine).", path=said
                ) from None
            except Stalled:
                self._channel.send([self._header()])
                raise FilesystemError(
                    f"{path}: the virtual machine has said nothing for {STALL_S:.0f} s.", "Try again.", path
                ) from None
            except VMError:  # nobody is left who could be told
                raise
            except BaseException:
                self._channel.send([self._header(), b""])
                raise
            finally:
                self._channel.current = None
                self._note(operation, path, status, time.monotonic() - begin)

    def _note(self, operation: str, path: str, status: str, seconds: float) -> None:
        if operation in _NOTED:
            fields = {"action": _NOTED[operation], "path": printable(self.noted_path or path), "status": status}
            counts = {"files": self.files, "bytes": self.bytes, "ms": round(1000 * seconds, 1)}
            self._channel.note(fields | counts)

    def _header(self) -> bytes:
        return json.dumps({"id": self._number, "op": "cancel"}).encode()


class Stalled(Exception):
    """The guest says nothing any more."""


@contextmanager
def host_errors(path: str) -> Iterator[None]:
    """What goes wrong on the host, or in what the guest has sent, as FilesystemError."""
    try:
        yield
    except TreeError as error:
        named = error.path or path
        raise FilesystemError(f"{printable(named)}: {error.reason}.", path=named) from None
    except OSError as error:
        raise FilesystemError(f"{path}: {reason_of(error)} (on the host).", path=path) from None
    except FrameError as error:
        raise FilesystemError(f"{path}: the virtual machine has broken the protocol: {error}.", path=path) from None


def check_path(path: str) -> None:
    try:
        path_parts(path)
    except TreeError as error:
        raise FilesystemError(f"{printable(path)}: {error.reason}.", path=path) from None


def printable(text: str) -> str:
    """The first 500 characters of what a guest says, fit for a terminal and a log."""
    return "".join(char if char.isprintable() else "?" for char in text[:500])
