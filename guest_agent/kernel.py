"""The guest's ipykernel: its process and the ZeroMQ sockets that stand in for the host's clients.

Inside the guest messages carry no signature: the sockets are unix sockets of the user whose code runs anyway, and
leaving the HMAC out saves time that emulation makes dear.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq

from guest_agent.frames import Kind
from guest_agent.init import USER_HOME, USER_ID, USER_NAME
from guest_agent.messages import DELIMITER, send

#: clients that are remembered at the same time; the one that has been silent longest goes first
MAX_CLIENTS = 1024
#: messages on iopub that wait for the agent; beyond, ipykernel waits (see ``flow.py``)
MAX_OUTPUTS = 200
#: processes and threads that the user's code may have, so that a fork bomb leaves the guest usable
MAX_PROCESSES = 512
#: the identity of the agent's own requests, which no client can have: jupyter_client's are longer
_OWN_IDENTITY = b"\x01vm"
_PORTS = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}


class Kernel:
    """One ipykernel process in a process group of its own, and everything that talks to it."""

    def __init__(self, folder: Path, as_user: bool) -> None:
        self._folder = folder
        self._as_user = as_user
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.iopub = self._context.socket(zmq.SUB)
        self.iopub.setsockopt(zmq.RCVHWM, MAX_OUTPUTS)
        self.iopub.subscribe(b"")
        self._clients: OrderedDict[tuple[Kind, bytes], zmq.Socket[bytes]] = OrderedDict()
        self._own = self._dealer("shell", _OWN_IDENTITY)
        self._process: subprocess.Popen[bytes] | None = None
        self.info: dict[str, Any] = {}

    @property
    def interrupt_facts(self) -> Path:
        """The file in which the kernel process says what ``interrupts.py`` must know of it."""
        return self._folder / "interruptible.json"

    @property
    def pid(self) -> int:
        """Process id of ipykernel; also its process group."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start ipykernel and wait until it answers."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        connection = self._folder / "connection.json"
        connection.write_text(json.dumps(self._connection_info()))
        if self._as_user:
            os.chown(self._folder, USER_ID, USER_ID)
            os.chown(connection, USER_ID, USER_ID)
        self._process = self._spawn(connection)
        self.iopub.connect(self._endpoint("iopub"))
        self.info = self._request("kernel_info_request", {}, timeout_s=120)

    def warm_up(self, preload: Sequence[str]) -> None:
        """Use what a session will use, those modules first, so that the snapshot has it in memory.

        Raises RuntimeError if a module cannot be imported.
        """
        self.run_silently(f"__import__('_vm_kernel_renew').preload({list(preload)!r})", timeout_s=300)
        self.run_silently(
            f"__import__('_vm_kernel_interruptible').prepare({str(self.interrupt_facts)!r})", timeout_s=60
        )
        self._request("complete_request", {"code": "import os; os.pat", "cursor_pos": 17}, timeout_s=300)
        self._request("inspect_request", {"code": "print", "cursor_pos": 5, "detail_level": 0}, timeout_s=300)
        # jupyter console waits a second for it, and takes a later one for the answer to what it asks next
        self._request("history_request", {"hist_access_type": "tail", "n": 1000, "raw": True, "output": False}, 60)
        self.run_silently("pass", timeout_s=300)
        self.drop_iopub()

    def renew(self, session: str) -> None:
        """Make this clone's kernel process unique. Raises RuntimeError if it cannot."""
        self.run_silently(f"__import__('_vm_kernel_renew').renew({session!r})", timeout_s=30)
        self.drop_iopub()

    def use_proxy(self, url: str) -> None:
        """Let this session's programs find the egress proxy. Raises RuntimeError if the kernel does not answer."""
        self.run_silently(f"__import__('_vm_kernel_renew').use_proxy({url!r})", timeout_s=10)
        self.drop_iopub()

    def rehearse(self) -> None:
        """Go the whole way of a cell, outputs included, and leave no trace."""
        self._run("None", silent=False, timeout_s=30)
        self.drop_iopub()

    def run_silently(self, code: str, timeout_s: float) -> None:
        """Run code of ours; the user's namespace, history and execution count stay as they are."""
        self._run(code, silent=True, timeout_s=timeout_s)

    def _run(self, code: str, silent: bool, timeout_s: float) -> None:
        content = {"code": code, "silent": silent, "store_history": False, "allow_stdin": False}
        reply = self._request("execute_request", content, timeout_s)
        if reply.get("status") != "ok":
            raise RuntimeError(f"{reply.get('ename')}: {reply.get('evalue')}")

    def drop_iopub(self, settle_s: float = 0.25) -> None:
        """Throw away the messages that our own requests caused, up to and including the last 'idle'."""
        deadline = time.monotonic() + settle_s
        while self.iopub.poll(max(0, int(1000 * (deadline - time.monotonic())))):
            content = self.iopub.recv_multipart()[-1]
            if b'"idle"' in content and not self.iopub.poll(0):
                return

    def send(self, kind: Kind, parts: list[bytes | memoryview]) -> bool:
        """Hand a client's message to ipykernel, as if that client were connected. True if sockets() has changed."""
        key = (kind, bytes(parts[0]))
        new = key not in self._clients
        if new:
            self._admit(key[1])
        self._clients.move_to_end(key)
        send(self._clients[key], parts[1:])
        return new

    def sockets(self) -> dict[zmq.Socket[bytes], tuple[Kind, bytes]]:
        """The sockets on which replies arrive, each with its channel and client."""
        return {socket: key for key, socket in self._clients.items()}

    def _admit(self, identity: bytes) -> None:
        """A new client: connect all its channels, stdin first, because input() in its first cell asks there."""
        while len(self._clients) >= 3 * MAX_CLIENTS:
            self._clients.popitem(last=False)[1].close(linger=0)
        for kind, channel in ((Kind.STDIN, "stdin"), (Kind.CONTROL, "control"), (Kind.SHELL, "shell")):
            if (kind, identity) not in self._clients:
                self._clients[kind, identity] = self._dealer(channel, identity)

    def _dealer(self, channel: str, identity: bytes) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, identity)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._endpoint(channel))
        return socket

    def _endpoint(self, channel: str) -> str:
        return f"ipc://{self._folder}/k-{_PORTS[channel]}"

    def _connection_info(self) -> dict[str, Any]:
        ports = {f"{channel}_port": port for channel, port in _PORTS.items()}
        return {"transport": "ipc", "ip": f"{self._folder}/k", "key": "", "signature_scheme": "hmac-sha256", **ports}

    def _spawn(self, connection: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(Path(__file__).with_name("launch.py")), "-f", str(connection)]
        # not in the home folder: code that empties it would have IPython say that it has no history any more
        command.append(f"--HistoryManager.hist_file={self._folder / 'history.sqlite'}")
        if not self._as_user:
            return subprocess.Popen([command[0], "-s", *command[1:]], stdin=subprocess.DEVNULL, start_new_session=True)
        environment = {
            "HOME": USER_HOME,
            "USER": USER_NAME,
            "LOGNAME": USER_NAME,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "PATH": f"{USER_HOME}/.local/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            # charts bring their scripts along, for the network has none and the front end need not know them
            "BOKEH_RESOURCES": "inline",
            "PLOTLY_RENDERER": "notebook",
        }
        # not the console: what the user's code writes there would be the host's to store
        with (self._folder / "kernel.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=USER_HOME,
                env=environment,
                user=USER_ID,
                group=USER_ID,
                extra_groups=[],
                preexec_fn=_limit,
            )
        # the agent is exempt from the out-of-memory killer; if its child were too, the guest would panic. Not in
        # preexec_fn: the child is no longer root then
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("0")
        return process

    def _log_tail(self) -> str:
        log = self._folder / "kernel.log"
        return log.read_text(errors="replace")[-400:].replace("\n", " | ") if log.exists() else ""

    def _request(self, kind: str, content: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """A request of our own on shell and its reply's content. Raises RuntimeError if none comes in time."""
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": kind,
            "session": "agent",
            "username": "agent",
            "date": "2020-01-01T00:00:00Z",
            "version": "5.3",
        }
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        self._own.send_multipart([DELIMITER, b"", *parts])
        deadline = time.monotonic() + timeout_s
        while self._own.poll(max(0, int(1000 * min(0.5, deadline - time.monotonic())))) == 0:
            if time.monotonic() > deadline:
                raise RuntimeError(f"ipykernel did not answer a {kind} within {timeout_s:.0f} s")
            if self._process is None or self._process.poll() is not None:
                raise RuntimeError(f"ipykernel ended while it was being prepared: {self._log_tail()}")
        reply: dict[str, Any] = json.loads(self._own.recv_multipart()[5])
        return reply


def _limit() -> None:
    """In the child, before ipykernel: the agent must outlive what the user's code does to the guest."""
    resource.setrlimit(resource.RLIMIT_NPROC, (MAX_PROCESSES, MAX_PROCESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
