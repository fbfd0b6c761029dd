"""The kernel's five ZeroMQ sockets: bound as the connection file says, encrypted if it has keys."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import NamedTuple

import zmq

from vm_kernel.errors import ConfigError
from vm_kernel.kernel.connection import Connection, write
from vm_kernel.kernel.iopub import QUEUED_MESSAGES

#: how long, in milliseconds, messages that a client has not taken yet hold up the end of the process
LINGER_MS = 1000


class Sockets(NamedTuple):
    """The sockets of the main loop. The heartbeat's is in its own thread."""

    context: zmq.Context[zmq.Socket[bytes]]
    shell: zmq.Socket[bytes]
    control: zmq.Socket[bytes]
    stdin: zmq.Socket[bytes]
    iopub: zmq.Socket[bytes]
    #: by the names that the connection file has, heartbeat included
    ports: dict[str, int]
    #: sockets and files to remove at the end
    files: list[str]

    def close(self) -> None:
        """Close in an orderly way: what has been sent still reaches clients that take it within LINGER_MS."""
        for socket in (self.shell, self.control, self.stdin, self.iopub):
            socket.close()
        self.context.term()
        for path in self.files:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108


def bind(connection: Connection) -> Sockets:
    """Bind everything, start the heartbeat, complete the connection file. Raises ConfigError if a port is taken."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    # A context of its own: the echo must go on whatever the main loop does.
    heart_context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ports = dict(connection.ports)
    sockets = {
        name: _bound(maker, kind, connection, ports, name)
        for name, maker, kind in (
            ("shell_port", context, zmq.ROUTER),
            ("control_port", context, zmq.ROUTER),
            ("stdin_port", context, zmq.ROUTER),
            ("iopub_port", context, zmq.XPUB),
            ("hb_port", heart_context, zmq.ROUTER),
        )
    }
    threading.Thread(target=_echo, args=(sockets["hb_port"],), name="heartbeat", daemon=True).start()
    if ports != connection.ports or not connection.existed:
        write(connection, ports)
    files = [] if connection.existed else [connection.path]
    if connection.transport == "ipc":
        files += [f"{connection.ip}-{port}" for port in ports.values()]
    return Sockets(
        context,
        sockets["shell_port"],
        sockets["control_port"],
        sockets["stdin_port"],
        sockets["iopub_port"],
        ports,
        files,
    )


def _bound(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, connection: Connection, ports: dict[str, int], name: str
) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    if kind == zmq.XPUB:
        # a client's queue that is full refuses, instead of dropping silently; see ``iopub``
        socket.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        # tell us of every subscriber, not of every new topic: each is greeted
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
    else:
        # with a limit ZeroMQ would drop silently the answers that a slow client has not taken yet
        socket.setsockopt(zmq.SNDHWM, 0)
        # a client that reconnects under its identity takes over from its former connection
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
    try:
        _encrypt(socket, connection)
        ports[name] = _bind(socket, connection, ports[name])
    except zmq.ZMQError as error:
        where = connection.endpoint(ports[name])
        raise ConfigError(f"The kernel cannot listen on {where} ({name}): {error}.", "Start it anew.") from None
    return socket


def _encrypt(socket: zmq.Socket[bytes], connection: Connection) -> None:
    if connection.curve_secret:
        socket.setsockopt(zmq.CURVE_SECRETKEY, connection.curve_secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, connection.curve_public)
        socket.setsockopt(zmq.CURVE_SERVER, 1)


def _bind(socket: zmq.Socket[bytes], connection: Connection, port: int) -> int:
    """Bind to that port, or to a free one for 0. The port."""
    if port:
        socket.bind(connection.endpoint(port))
        return port
    if connection.transport == "tcp":
        socket.bind(f"tcp://{connection.ip}:*")
        return int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
    port = 1
    while os.path.exists(f"{connection.ip}-{port}"):  # noqa: PTH110
        port += 1
    socket.bind(connection.endpoint(port))
    return port


def _echo(socket: zmq.Socket[bytes]) -> None:
    """The heartbeat. Ends with the process."""
    with contextlib.suppress(zmq.ZMQError):
        zmq.proxy(socket, socket)
