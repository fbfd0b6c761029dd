"""A client as thin as can be, the same on the host and inside a guest. Standard library and pyzmq: it is sent there.

Run as a script (in a guest, by ``benchmarks.inside``) it starts an ipykernel, reads orders from stdin, one a line, and
appends to a file a line of JSON with the seconds that each took.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import zmq

TIMEOUT_S = 120
DELIMITER = b"<IDS|MSG>"
COMM_ID = "bench"
#: a hundred megabytes: lines of a thousand bytes
STDOUT_BYTES = 100_000_000
PRINT_100_MB = f"for _ in range({STDOUT_BYTES // 1000}):\n    print('x' * 999)"
PREPARE = """
import comm
words = ["a"]
comm.get_comm_manager().register_target("echo", lambda it, _: it.on_msg(lambda said: it.send(said["content"]["data"])))
"""
CELL: dict[str, Any] = {
    "code": "1 + 1",
    "silent": False,
    "store_history": False,
    "user_expressions": {},
    "allow_stdin": False,
}
#: requests that are measured, by name: message type and content
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "cell": ("execute_request", CELL),
    "completion": ("complete_request", {"code": "words.app", "cursor_pos": 9}),
    "comm": ("comm_msg", {"comm_id": COMM_ID, "data": {"value": 1}}),
}


class Part(NamedTuple):
    """A part of an answer."""

    msg_type: str
    parent_id: str
    content: bytes


class Client:
    """Asks one thing at a time. How messages travel is a subclass's."""

    def send(self, msg_type: str, parts: list[bytes]) -> None:
        """Send a message on shell. ``parts``: header, parent header, metadata, content."""
        raise NotImplementedError

    def receive(self, timeout_s: float = TIMEOUT_S) -> Iterator[Part]:
        """What has arrived on shell and iopub; waits if nothing has, and yields nothing after ``timeout_s``."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Have the other end of the comm registered, and everything used once."""
        while not self._hears_iopub():
            pass
        self.ask_for("execute_request", {**CELL, "code": PREPARE})
        self.ask_for("comm_open", {"comm_id": COMM_ID, "target_name": "echo", "data": {}})
        for name in 10 * tuple(REQUESTS):
            self.ask(name)

    def ask(self, name: str) -> float:
        """Seconds from the request to its whole answer: the reply (a comm's: the echo) and the idle."""
        if name == "stdout":
            return self.stdout()
        return self.ask_for(*REQUESTS[name])[0]

    def ask_for(self, msg_type: str, content: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """Seconds as above, and the content of the reply or echo."""
        msg_id, parts = _message(msg_type, content)
        # a comm_open has no answer but its idle
        answer = {"comm_msg": "comm_msg", "comm_open": ""}.get(msg_type, msg_type.replace("_request", "_reply"))
        begin = time.perf_counter()
        self.send(msg_type, parts)
        answered, idle = (b"{}" if not answer else b""), False
        while not (answered and idle):
            for part in self._some():
                if part.parent_id != msg_id:
                    continue
                if part.msg_type == answer:
                    answered = part.content
                idle = idle or (part.msg_type == "status" and b'"idle"' in part.content)
        seconds = time.perf_counter() - begin
        return seconds, json.loads(answered)

    def cells(self, count: int, pipelined: bool) -> float:
        """Seconds for many trivial cells: one after the other, or all sent at once."""
        begin = time.perf_counter()
        if not pipelined:
            for _ in range(count):
                self.ask("cell")
            return time.perf_counter() - begin
        replies, idles = set(), set()
        for _ in range(count):
            msg_id, parts = _message(*REQUESTS["cell"])
            replies.add(msg_id)
            idles.add(msg_id)
            self.send("execute_request", parts)
        while replies or idles:
            for part in self._some():
                if part.msg_type == "execute_reply":
                    replies.discard(part.parent_id)
                elif part.msg_type == "status" and b'"idle"' in part.content:
                    idles.discard(part.parent_id)
        return time.perf_counter() - begin

    def stdout(self) -> float:
        """Seconds until a hundred megabytes of stdout have arrived, and the idle. Raises RuntimeError if less came."""
        msg_id, parts = _message("execute_request", {**CELL, "code": PRINT_100_MB})
        begin = time.perf_counter()
        self.send("execute_request", parts)
        received, idle = 0, False
        while not idle:
            for part in self._some():
                if part.msg_type == "stream":
                    received += len(part.content)
                elif part.parent_id == msg_id and part.msg_type == "status":
                    idle = b'"idle"' in part.content
        seconds = time.perf_counter() - begin
        if received < STDOUT_BYTES:
            raise RuntimeError(f"{received} bytes of stdout")
        return seconds

    def _some(self) -> Iterator[Part]:
        """At least one part. Raises RuntimeError if none comes."""
        empty = True
        for part in self.receive():
            empty = False
            yield part
        if empty:
            raise RuntimeError(f"no answer within {TIMEOUT_S} s")

    def _hears_iopub(self) -> bool:
        """Ask something small; True if its idle was heard: a subscription takes a moment to arrive."""
        msg_id, parts = _message("kernel_info_request", {})
        self.send("kernel_info_request", parts)
        replied = idle = False
        while not idle:
            heard = list(self.receive(0.2 if replied else TIMEOUT_S))
            if not heard:
                return False
            for part in heard:
                ours = part.parent_id == msg_id
                replied = replied or (ours and part.msg_type == "kernel_info_reply")
                idle = idle or (ours and b'"idle"' in part.content)
        return True


class SocketClient(Client):
    """Over a kernel's own ZeroMQ sockets."""

    def __init__(self, info: dict[str, Any]) -> None:
        """``info``: what a connection file has."""
        key = info["key"]
        key = key if isinstance(key, bytes) else key.encode()
        self._keyed = hmac.new(key, digestmod=hashlib.sha256) if key else None
        colon = "-" if info["transport"] == "ipc" else ":"
        address = f"{info['transport']}://{info['ip']}{colon}"
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._shell, self._iopub = context.socket(zmq.DEALER), context.socket(zmq.SUB)
        self._poller = zmq.Poller()
        for socket, name in ((self._iopub, "iopub"), (self._shell, "shell")):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            self._poller.register(socket, zmq.POLLIN)
            if name == "iopub":
                socket.subscribe(b"")
            socket.connect(f"{address}{info[f'{name}_port']}")

    def send(self, msg_type: str, parts: list[bytes]) -> None:
        """Signed as any client does."""
        signature = b""
        if self._keyed is not None:
            state = self._keyed.copy()
            for part in parts:
                state.update(part)
            signature = state.hexdigest().encode()
        self._shell.send_multipart([DELIMITER, signature, *parts])

    def receive(self, timeout_s: float = TIMEOUT_S) -> Iterator[Part]:
        """Signatures are not checked: the same for all that are compared."""
        for socket, _ in self._poller.poll(int(1000 * timeout_s)):
            frames = socket.recv_multipart()
            yield part_of(frames[frames.index(DELIMITER) + 2 :])

    def close(self) -> None:
        """Close the sockets."""
        self._shell.close()
        self._iopub.close()


def part_of(parts: list[bytes]) -> Part:
    """``parts``: header, parent header, metadata, content, …"""
    return Part(json.loads(parts[0])["msg_type"], json.loads(parts[1]).get("msg_id", ""), parts[3])


def _message(msg_type: str, content: dict[str, Any]) -> tuple[str, list[bytes]]:
    msg_id = uuid.uuid4().hex
    header = {
        "msg_id": msg_id,
        "msg_type": msg_type,
        "session": "bench",
        "username": "bench",
        "date": "2026-01-01T00:00:00Z",
        "version": "5.4",
    }
    return msg_id, [json.dumps(part).encode() for part in (header, {}, {}, content)]


def main(launcher: str, folder: Path) -> None:
    """In a guest: a second ipykernel, started as the agent starts the first, that nobody but this client talks to."""
    info = {"transport": "ipc", "ip": str(folder / "k"), "key": "", "signature_scheme": "hmac-sha256"}
    info |= {f"{name}_port": port for port, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}  # type: ignore[dict-item]
    connection = folder / "connection.json"
    connection.write_text(json.dumps(info))
    with subprocess.Popen([sys.executable, "-s", launcher, "-f", str(connection)]) as kernel:
        client = SocketClient(info)
        client.prepare()
        with (folder / "results").open("a", buffering=1) as results:
            results.write("[]\n")
            for line in sys.stdin:
                name, count = line.split()
                time.sleep(0.1)  # the cell that gave the order is to be over
                results.write(json.dumps([client.ask(name) for _ in range(int(count))]) + "\n")
        kernel.kill()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
