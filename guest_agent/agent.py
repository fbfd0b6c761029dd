"""The guest agent: process 1 of the guest. Start: ``python3 -m guest_agent.agent``.

1. In the template: set the guest up, start ipykernel, warm it up, say so on the console, wait. The host takes the
   golden snapshot now.
2. In each clone: the wait ends when the host connects. Say hello, become unique, then relay messages between the host
   and ipykernel until the host goes away, and power off. One connection, the first, for life.

``--local FD`` serves an already connected descriptor in an ordinary process, without a VM and without the duties of
process 1: for work on the agent and on the kernel process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import zmq

from guest_agent import init, unique
from guest_agent.cut import cut_to_size
from guest_agent.files import Files
from guest_agent.frames import JUPYTER_KINDS, PROTOCOL_VERSION, FrameError, Kind, decode_json, unpack_parts
from guest_agent.interrupts import Facts, Interrupts
from guest_agent.kernel import Kernel
from guest_agent.messages import POLLIN, POLLOUT, parts_of, receive, waiting
from guest_agent.proxy import Proxy
from guest_agent.proxy_link import Op, unpack
from guest_agent.stream import Stream
from guest_agent.transport import Local, Transport, from_command_line

#: messages taken from one socket before the others get their turn
_BURST = 64
#: a warm VM that nobody has spoken to for so long rehearses its first cell
_QUIET_MS = 20


class Agent:
    """Relays between one host connection and one ipykernel."""

    def __init__(self, transport: Transport, kernel: Kernel, in_vm: bool) -> None:
        self._transport = transport
        self._kernel = kernel
        self._in_vm = in_vm
        self._died = False
        self._unique = False
        self._frozen = False
        self._rehearsal_due = False
        self._interrupts = Interrupts(kernel.pid, Facts.read(kernel.interrupt_facts))
        self._poller = zmq.Poller()
        self._watching = POLLIN
        #: the events that the host's descriptor is watched for; 0: not at all yet
        self._host_events = 0
        self._known: dict[zmq.Socket[bytes], tuple[Kind, bytes]] = {}
        self._wakeup, wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        wakeup.setblocking(False)
        self._wakeup_fd, self._wakeup_write = self._wakeup.fileno(), wakeup
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.fileno())

    def serve(self) -> None:
        """Wait for the host, then relay until it has gone."""
        self._stream = Stream(self._transport.accept())
        self._files = Files(self._poller, self._in_vm, lambda parts: self._stream.send(Kind.FILES, parts))
        self._proxy = Proxy(self._poller, self._in_vm, lambda parts: self._stream.send(Kind.PROXY, parts))
        self._poller.register(self._wakeup_fd, POLLIN)
        self._poller.register(self._kernel.iopub, POLLIN)
        self._stream.send_json(
            Kind.HELLO, {"protocol": PROTOCOL_VERSION, "kernel_pid": self._kernel.pid, "kernel_info": self._kernel.info}
        )
        with contextlib.suppress(EOFError, FrameError):
            while True:
                self._stream.flush()
                self._turn()
                if self._frozen:
                    self._stand_still()

    def _turn(self) -> None:
        """One turn of the loop: sleep until something is ready, then do a bounded amount of each kind of work."""
        wanted = POLLIN | POLLOUT if self._stream.wants_write else POLLIN
        if wanted != self._host_events:
            self._host_events = wanted
            self._poller.register(self._stream.fd, wanted)
        self._watch_output()
        self._files.watch(room=not self._stream.full)
        if self._proxy.fd >= 0:
            self._proxy.watch(room=self._stream.has_room)
        ready = dict(self._poller.poll(self._timeout_ms()))
        if not ready and self._rehearsal_due:
            self._rehearse()
        self._interrupts.advance()
        events = ready.pop(self._stream.fd, 0)
        if events & ~POLLOUT:
            self._from_host()
        if ready.pop(self._wakeup_fd, 0):
            self._children_ended()
        if events := ready.pop(self._files.fd, 0):
            self._files.ready(events)
        if events := ready.pop(self._proxy.fd, 0):
            self._proxy.ready(events)
        # outputs ahead of the reply that ends them
        if ready.pop(self._kernel.iopub, 0):
            self._forward(self._kernel.iopub, Kind.IOPUB, b"")
        for sock in ready:
            if sock in self._known:
                self._forward(sock, *self._known[sock])

    def _stand_still(self) -> None:
        """Say nothing of Python's until the host thaws this VM, or a copy of it, which becomes unique (UNIQUE) first.

        In a copy the connection has ended and another one comes. On a virtio port the host may be back before its
        absence can be noticed: then it is the message that tells.
        """
        self._transport.expect_copy()
        self._stream.send_json(Kind.FROZEN, {})
        while self._frozen:
            select.select([self._stream.fd], [self._stream.fd] if self._stream.wants_write else [], [])
            try:
                self._stream.flush()
                self._from_host()
            except EOFError:
                self._poller.unregister(self._stream.fd)
                self._host_events = 0
                self._stream = Stream(self._transport.accept())

    def _timeout_ms(self) -> int | None:
        if self._interrupts.due is not None:
            return max(0, int(1000 * (self._interrupts.due - time.monotonic())) + 1)
        return _QUIET_MS if self._rehearsal_due else None

    def _watch_output(self) -> None:
        """Take output and replies from ipykernel unless the host lags behind."""
        events = 0 if self._stream.full else POLLIN
        if events != self._watching:
            self._watching = events
            self._poller.register(self._kernel.iopub, events)
            for sock, (kind, _) in self._known.items():
                if kind is Kind.SHELL:
                    self._poller.register(sock, events)

    def _from_host(self) -> None:
        for kind, body in self._stream.receive():
            if kind in JUPYTER_KINDS:
                self._to_kernel(kind, [*unpack_parts(body)])
            elif kind is Kind.FILES:
                self._files.from_host(unpack_parts(body))
            elif kind is Kind.PROXY:
                self._of_proxy(unpack_parts(body))
            else:
                self._obey(kind, decode_json(body))

    def _of_proxy(self, parts: list[bytes]) -> None:
        if unpack(parts)[0] is not Op.BEGIN:
            self._proxy.from_host(parts)
            return
        with contextlib.suppress(OSError, RuntimeError):  # the port is taken, or the kernel busy: no proxy then
            if self._proxy.begin():
                self._kernel.use_proxy(self._proxy.url)

    def _to_kernel(self, kind: Kind, parts: list[bytes | memoryview]) -> None:
        # ZeroMQ keeps identities that begin with a zero byte to itself
        if len(parts) < 5 or not 0 < len(parts[0]) < 256 or parts[0][0] == 0:
            raise FrameError(f"a {kind.name} message of {len(parts)} parts from {[bytes(p) for p in parts[:1]]}")
        # a rehearsal throws away what is published meanwhile: never beside a client's request
        self._rehearsal_due = False
        if self._kernel.send(kind, parts):
            self._clients_changed()

    def _clients_changed(self) -> None:
        known = self._kernel.sockets()
        for gone in self._known.keys() - known.keys():
            self._poller.register(gone, 0)
        for new in known.keys() - self._known.keys():
            self._poller.register(new, self._watching if known[new][0] is Kind.SHELL else POLLIN)
        self._known = known

    def _obey(self, kind: Kind, fields: dict[str, Any]) -> None:
        if kind is Kind.UNIQUE:
            self._become_unique(unique.Identity.from_message(fields))
        elif kind is Kind.PING:
            self._stream.send_json(Kind.PONG, self._health(fields))
        elif kind is Kind.INTERRUPT:
            done = self._interrupts.send()
            self._stream.send_json(Kind.INTERRUPTED, {"seq": fields.get("seq"), "ok": done})
        elif kind is Kind.CLOCK and self._in_vm:
            unique.set_clock(int(fields["time_ns"]))
        elif kind is Kind.FREEZE:
            self._proxy.end()
            self._frozen = True
        elif kind is Kind.THAW and self._frozen:
            self._transport.no_copy()
            self._frozen = False

    def _become_unique(self, identity: unique.Identity) -> None:
        if self._unique and not self._frozen:
            raise FrameError("a second UNIQUE message")
        started = time.monotonic()
        self._unique = True
        if self._in_vm:
            unique.apply(identity)
        try:
            if not identity.same_session:
                self._kernel.renew(identity.session)
        except RuntimeError as error:
            self._stream.send_json(Kind.READY, {"error": str(error)})
        else:
            self._rehearsal_due = not self._frozen
            took_ms = 1000 * (time.monotonic() - started)
            self._stream.send_json(Kind.READY, {"session": identity.session, "ms": round(took_ms, 2)})

    def _rehearse(self) -> None:
        """Run a cell for nobody, so that the first real one does not find the emulator's translation cache cold."""
        self._rehearsal_due = False
        with contextlib.suppress(RuntimeError):
            self._kernel.rehearse()

    def _health(self, fields: dict[str, Any]) -> dict[str, Any]:
        memory = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return {
            "seq": fields.get("seq"),
            "uptime_s": round(time.monotonic(), 3),
            "mem_available_kib": int(memory["MemAvailable"].split()[0]),
            "kernel_alive": not self._died,
        }

    def _forward(self, sock: zmq.Socket[bytes], kind: Kind, identity: bytes) -> None:
        for _ in range(_BURST):
            try:
                parts = parts_of(identity, receive(sock))
            except zmq.Again:
                return
            if parts is not None:
                self._stream.send(kind, cut_to_size(kind, parts))
            if not waiting(sock) or (self._stream.full and kind in (Kind.IOPUB, Kind.SHELL)):
                return

    def _children_ended(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup.recv(4096)
        status = self._kernel_status()
        if status is None or self._died:
            return
        self._died = True
        self._forward_rest()
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        facts = {"exit_code": code, "signal": number, "out_of_memory": init.killed_for_memory(self._kernel.pid)}
        self._stream.send_json(Kind.KERNEL_DIED, facts)

    def _kernel_status(self) -> int | None:
        if self._in_vm:
            return init.reap().get(self._kernel.pid)
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(self._kernel.pid, os.WNOHANG)
            return status if pid else None
        return None

    def _forward_rest(self) -> None:
        """What ipykernel still sent before it ended; its sockets deliver it even now."""
        time.sleep(0.05)
        while self._kernel.iopub.poll(0):
            self._forward(self._kernel.iopub, Kind.IOPUB, b"")
        for sock, (kind, identity) in self._known.items():
            self._forward(sock, kind, identity)


def main() -> None:
    """Entry point, in the guest and (with --local) outside it."""
    parser = argparse.ArgumentParser(prog="guest_agent")
    parser.add_argument("--local", type=int, metavar="FD", help="serve this connected descriptor, without a VM")
    arguments = parser.parse_args()
    if arguments.local is not None:
        _serve_locally(arguments.local)
        return
    try:
        _serve_in_vm()
    except BaseException as error:
        init.console(f"failed: {type(error).__name__}: {error}")
    finally:
        init.power_off()


def _serve_in_vm() -> None:
    init.set_up()
    words = Path("/proc/cmdline").read_text().split()
    transport = from_command_line(words)
    kernel = Kernel(Path("/run/vm-kernel"), as_user=True)
    kernel.start()
    kernel.warm_up(preloaded(words))
    agent = Agent(transport, kernel, in_vm=True)
    init.console("warm")
    agent.serve()


def preloaded(words: list[str]) -> list[str]:
    """The modules that the kernel's command line names: ``vm_kernel.preload=numpy,pandas``."""
    values = [word.partition("=")[2] for word in words if word.startswith("vm_kernel.preload=")]
    return [name for value in values for name in value.split(",") if name]


def _serve_locally(fd: int) -> None:
    with tempfile.TemporaryDirectory(prefix="vm-kernel-agent-") as folder:
        kernel = Kernel(Path(folder), as_user=False)
        kernel.start()
        kernel.drop_iopub()
        try:
            Agent(Local(fd), kernel, in_vm=False).serve()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(kernel.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
