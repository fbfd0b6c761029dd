"""The client of the pool service: start it if need be, take a lease, ask for its status. Blocking.

Standard library only, and little of that: every kernel process imports this while a user waits.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from vm_kernel import paths
from vm_kernel.errors import PoolError, PoolUnavailable, VMDied
from vm_kernel.pool.protocol import MAX_LINE, MAX_NOTE, VMFacts, decode, encode, error_of

_LOG_HINT = "Its log is {log}. `vm-kernel doctor` checks what a VM needs."


class Lease(NamedTuple):
    """A VM of one's own, for as long as ``connection`` is open."""

    vm: VMFacts
    stream: socket.socket
    connection: PoolConnection


class PoolConnection:
    """One connection to the pool service. A lease that was acquired over it ends when it is closed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = bytearray()
        self._heard = self._abandoned = False
        self._descriptors: list[int] = []

    @classmethod
    def open(cls, start_service: bool = True, timeout_s: float = 30.0) -> PoolConnection:
        """Connect to the service, and start it first if nobody listens. Raises PoolUnavailable, ConfigError, …"""
        deadline = time.monotonic() + timeout_s
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout_s)
            try:
                sock.connect(str(paths.pool_socket()))
                return cls(sock)
            except BlockingIOError:  # hundreds connect at once
                sock.close()
                if time.monotonic() > deadline:
                    raise PoolUnavailable("The pool service does not take any more connections.", _hint()) from None
                time.sleep(0.05)
                continue
            except (FileNotFoundError, ConnectionRefusedError):
                sock.close()
            except OSError as error:
                sock.close()
                raise PoolUnavailable(f"The pool service's socket cannot be used: {error}.", _hint()) from None
            if not start_service:
                raise PoolUnavailable("The pool service is not running.", "Start it with `vm-kernel pool start`.")
            if time.monotonic() > deadline:
                raise PoolUnavailable("The pool service was started but does not listen.", _hint())
            _start_service(deadline)

    def acquire(
        self,
        profile: str = "default",
        on_waiting: Callable[[str], None] | None = None,
        kernel_id: str = "",
        fork: str | None = None,
    ) -> Lease:
        """Take a VM. Blocks while one is made or the pool is full, and tells ``on_waiting`` why.

        ``fork``: a token of another lease's fork(); the VM goes on from its state, and its agent waits for THAW.
        Raises PoolFull, UnknownProfile, ImageError, HostError, … as the service says, PoolUnavailable if it ends.
        """
        started = time.perf_counter()
        request = encode({"op": "acquire", "profile": profile, "kernel_id": kernel_id, "fork": fork})
        try:
            self._sock.sendall(request)
            return self._lease(started, on_waiting)
        except (OSError, PoolUnavailable):
            if self._heard or self._abandoned:
                raise
        # not a word: the service was killed when we connected to it; another one is to be had
        self._sock.close()
        self._sock = PoolConnection.open()._sock
        self._sock.sendall(request)
        return self._lease(started, on_waiting)

    def save_checkpoint(self, name: str, keep: bool = False) -> dict[str, Any]:
        """Save the state of the leased VM; its agent must have fallen silent. Facts about the checkpoint.

        Raises CheckpointError; the VM goes on.
        """
        checkpoint: dict[str, Any] = self._ask({"op": "checkpoint", "name": name, "keep": keep}, "checkpoint")[
            "checkpoint"
        ]
        return checkpoint

    def checkpoints(self) -> dict[str, Any]:
        """``checkpoints``: facts about each that this lease can go back to; ``used_mib`` and ``limit_mib`` of disk."""
        return self._ask({"op": "checkpoints"}, "checkpoints")

    def delete_checkpoint(self, name: str) -> None:
        """Delete a checkpoint, or what a fork() has saved. Raises CheckpointError."""
        self._ask({"op": "delete_checkpoint", "name": name}, "deleted")

    def rollback(self, name: str) -> Lease:
        """Go back to a checkpoint: another VM over the same lease, whose agent waits for THAW; the old one goes.

        Raises CheckpointError, CloneError; the old VM goes on then.
        """
        started = time.perf_counter()
        self._sock.sendall(encode({"op": "rollback", "name": name}))
        return self._lease(started, None)

    def fork(self) -> str:
        """Save the state of the leased VM for others; its agent must have fallen silent. A token for acquire()."""
        return str(self._ask({"op": "fork"}, "fork")["token"])

    def _ask(self, request: dict[str, Any], answer: str) -> dict[str, Any]:
        self._sock.sendall(encode(request))
        while True:
            event = self._event(None)
            if event["event"] == answer:
                return event
            _raise_if_gone(event)

    def _lease(self, started: float, on_waiting: Callable[[str], None] | None) -> Lease:
        while True:
            event = self._event(None)
            if event["event"] == "lease" and self._descriptors:
                break
            if event["event"] == "waiting" and on_waiting is not None:
                on_waiting(str(event.get("message")))
            _raise_if_gone(event)
        stream = socket.socket(fileno=self._descriptors.pop())
        facts = {name: event["vm"].get(name) for name in VMFacts._fields}
        facts["acquire_ms"] = round(1000 * (time.perf_counter() - started), 3)
        return Lease(VMFacts(**facts), stream, self)

    def status(self, timeout_s: float = 10.0, history: bool = False) -> dict[str, Any]:
        """What the service knows about itself and its VMs; with ``history``, also samples of the last minutes."""
        self._sock.sendall(encode({"op": "status", "history": history}))
        return self._event(timeout_s)

    def metrics(self, timeout_s: float = 10.0) -> str:
        """What Prometheus would get."""
        self._sock.sendall(encode({"op": "metrics"}))
        return str(self._event(timeout_s).get("text"))

    def stop(self, timeout_s: float = 60.0, drain_s: float = 0.0) -> None:
        """End every lease and VM and the service itself; returns when nothing is left running.

        drain_s: seconds that sessions have to end by themselves; no new lease is given meanwhile.
        """
        self._sock.sendall(encode({"op": "stop", "drain_s": drain_s}))
        self._event(timeout_s + drain_s)

    def reload(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Have the service read its configuration anew. Returns what has changed; raises ConfigError, ImageError."""
        self._sock.sendall(encode({"op": "reload"}))
        return self._event(timeout_s)

    def note(self, event: str, fields: dict[str, Any]) -> bool:
        """Tell the service something about the session of this lease, see ``pool/notes.py``; there is no answer.

        Never blocks and never raises. False: the service has too much to read, or has ended; nothing was sent then.
        """
        line = encode({"op": "note", "event": event, **fields})
        if len(line) > MAX_NOTE:
            fields = {name: value for name, value in fields.items() if name != "code"}
            line = encode({"op": "note", "event": event, **fields})
        try:
            # Not socket.send(), which waits for room in a socket with a timeout. And a unix socket that is writable
            # takes so few bytes at once and as a whole: they get into nobody else's line.
            ready = select.select([], [self._sock], [], 0)[1]
            return bool(ready) and os.write(self._sock.fileno(), line) == len(line)
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """The socket's descriptor: readable when the VM has gone (read_event) or the service has."""
        return self._sock.fileno()

    def read_event(self, timeout_s: float) -> dict[str, Any] | None:
        """The next event, None after ``timeout_s`` seconds. Raises PoolUnavailable when the service has ended."""
        try:
            return self._event(timeout_s)
        except TimeoutError:
            return None

    def abandon(self) -> None:
        """End a call that another thread is waiting in, with PoolUnavailable; that thread is to close then."""
        self._abandoned = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; a lease ends with it."""
        self._sock.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _event(self, timeout_s: float | None) -> dict[str, Any]:
        event = decode(self._line(timeout_s))
        if event.get("event") == "error":
            raise error_of(event)
        if not isinstance(event.get("event"), str):
            raise PoolError("The pool service answered with something that is no event.", _hint())
        return event

    def _line(self, timeout_s: float | None) -> bytes:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (end := self._received.find(b"\n")) < 0:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._sock], [], [], left)[0]:
                raise TimeoutError("the pool service did not answer in time")
            try:
                data, descriptors, _, _ = socket.recv_fds(self._sock, 65536, 4)
            except OSError:
                data, descriptors = b"", []
            self._descriptors += descriptors
            if not data:
                raise PoolUnavailable("The pool service has ended.", _hint())
            self._heard = True
            self._received += data
            if len(self._received) > MAX_LINE:
                raise PoolError("The pool service sent a line that is too long.", _hint())
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


def _raise_if_gone(event: dict[str, Any]) -> None:
    if event["event"] == "vm_gone":
        raise VMDied(f"The virtual machine has ended: {event.get('reason')}", "Its state is lost.")


def _hint() -> str:
    return _LOG_HINT.format(log=paths.log_file())


def _start_service(deadline: float) -> None:
    """Start ``python -m vm_kernel.pool`` in a session of its own and wait until it listens or says why it does not.

    Where systemd can bound what it and its VMs take together, it is in a scope: see ``pool.scope``.
    """
    # not at the top: a kernel process seldom needs them, and always pays for them
    import subprocess

    from vm_kernel.pool import scope

    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [*scope.words(), sys.executable, "-m", "vm_kernel.pool", "--ready-fd", str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[writing],
            start_new_session=True,
            cwd="/",
            env=os.environ | {"VM_KERNEL_HOME": str(paths.home())},
        )
        os.close(writing)
        said = _read_all(reading, deadline)
    finally:
        os.close(reading)
    # The service outlives us and is not ours to wait for: forget the child without a ResourceWarning.
    process.returncode = 0
    if not said:
        raise PoolUnavailable("The pool service ended while it started.", _hint())
    event = decode(said)
    if event.get("event") == "error":
        raise error_of(event)


def _read_all(fd: int, deadline: float) -> bytes:
    said = b""
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        data = os.read(fd, 65536)
        if not data:
            return said
        said += data
    raise PoolUnavailable("The pool service did not start in time.", _hint())
