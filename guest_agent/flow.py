"""Inside ipykernel: code that makes output faster than it leaves the VM waits for it.

ipykernel drops silently what its socket has no room for, and what is printed while its output thread is busy has no
bound. Here the socket makes that thread wait, and code that prints waits for the thread; it can be interrupted
meanwhile. ``launch.py`` calls install() before ipykernel starts.
"""

from __future__ import annotations

from typing import Any

#: messages that wait in ipykernel's socket for the agent
MAX_MESSAGES = 200
#: characters of one message on stdout or stderr: host and guest count messages, so none should be large
CHUNK = 256 * 1024
#: characters that IPython keeps of what one cell prints, for %notebook; it knows no bound
MAX_RECORD = 1024 * 1024


def install() -> None:
    """Make this process's output wait instead of growing."""
    from ipykernel.iostream import OutStream
    from ipykernel.kernelapp import IPKernelApp
    from IPython.core import interactiveshell

    _limit_socket(IPKernelApp)
    _limit_stream(OutStream)
    _limit_record(interactiveshell)


def _limit_socket(app_type: Any) -> None:
    """Before it is bound: a limit that changes later is not counted from where the connections stand."""
    import zmq

    bind = app_type._bind_socket

    def limited_bind(self: Any, socket: Any, port: Any) -> Any:
        if socket.type == zmq.XPUB:
            socket.setsockopt(zmq.SNDHWM, MAX_MESSAGES)
            socket.setsockopt(zmq.XPUB_NODROP, 1)
        return bind(self, socket, port)

    app_type._bind_socket = limited_bind


def _limit_stream(stream_type: Any) -> None:
    write = stream_type.write

    def limited_write(self: Any, string: Any) -> Any:
        if not isinstance(string, str) or not self._is_master_process():
            return write(self, string)
        for start in range(0, max(1, len(string)), CHUNK):
            piece = string[start : start + CHUNK]
            write(self, piece)
            self._vm_kernel_written = getattr(self, "_vm_kernel_written", 0) + len(piece)
            if self._vm_kernel_written >= CHUNK:
                self._vm_kernel_written = 0
                self.flush()
        return len(string)

    limited_write.__name__, limited_write.__doc__ = "write", write.__doc__
    stream_type.write = limited_write


def _limit_record(module: Any) -> None:
    original = module.HistoryOutput

    def limited(output_type: str, bundle: dict[str, Any]) -> Any:
        if bundle.get("stream") == []:
            bundle = {"stream": _Record()}
        return original(output_type=output_type, bundle=bundle)

    module.HistoryOutput = limited


class _Record(list[str]):
    """The beginning of what a cell prints."""

    left = MAX_RECORD

    def append(self, text: str) -> None:
        """Keep it if there is room."""
        self.left -= len(text)
        if self.left >= 0:
            super().append(text)
