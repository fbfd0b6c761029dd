"""The connection file: where clients will look for this kernel, and with which keys."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from vm_kernel.errors import ConfigError

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


class Connection(NamedTuple):
    """Content of a connection file. A port of 0 is still to be chosen."""

    path: str
    transport: str
    ip: str
    key: bytes
    signature_scheme: str
    ports: dict[str, int]
    #: CurveZMQ keys (Z85), empty without encryption
    curve_public: bytes
    curve_secret: bytes
    #: False if there was no such file: it is ours to write and to remove
    existed: bool

    def endpoint(self, port: int) -> str:
        """ZeroMQ address of one port."""
        return f"tcp://{self.ip}:{port}" if self.transport == "tcp" else f"ipc://{self.ip}-{port}"


def read(path: str) -> Connection:
    """Read a connection file; one that does not exist stands for a kernel on ports of its own choice.

    Raises ConfigError if it cannot be read or makes no sense.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123  importing pathlib takes longer than all of this
            fields, existed = json.loads(file.read()), True
    except FileNotFoundError:
        fields, existed = {"key": os.urandom(16).hex()}, False
    except (OSError, ValueError) as error:
        raise _bad(path, str(error)) from None
    if not isinstance(fields, dict):
        raise _bad(path, "it holds no JSON object")
    return _checked(path, fields, existed)


def write(connection: Connection, ports: dict[str, int]) -> None:
    """Put the ports that were chosen into the file, for clients to find. Only its owner can read it."""
    fields: dict[str, Any] = {
        "transport": connection.transport,
        "ip": connection.ip,
        "key": connection.key.decode(),
        "signature_scheme": connection.signature_scheme,
    }
    if connection.existed:
        with open(connection.path, "rb") as file:  # noqa: PTH123
            fields = json.loads(file.read())
    temporary = f"{connection.path}.{os.getpid()}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
        json.dump(fields | ports, file, indent=1)
    os.replace(temporary, connection.path)  # noqa: PTH105


def _checked(path: str, fields: dict[str, Any], existed: bool) -> Connection:
    transport, ip = fields.get("transport") or "tcp", fields.get("ip")
    if transport not in ("tcp", "ipc"):
        raise _bad(path, f"transport {transport!r} is neither 'tcp' nor 'ipc'")
    texts = [fields.get(name) or "" for name in ("key", "curve_publickey", "curve_secretkey")]
    ports = {name: fields.get(name) or 0 for name in PORTS}
    if not all(isinstance(text, str) for text in [*texts, ip or ""]) or not all(
        type(port) is int and 0 <= port < 65536 for port in ports.values()
    ):
        raise _bad(path, "a field has the wrong type")
    if bool(texts[1]) != bool(texts[2]):
        raise _bad(path, "one of the two CurveZMQ keys is missing")
    default_ip = "127.0.0.1" if transport == "tcp" else f"{path.removesuffix('.json')}-ipc"
    key, public, secret = (text.encode() for text in texts)
    scheme = fields.get("signature_scheme") or "hmac-sha256"
    return Connection(path, transport, ip or default_ip, key, scheme, ports, public, secret, existed)


def _bad(path: str, why: str) -> ConfigError:
    return ConfigError(f"The connection file {path} cannot be used: {why}.", "Jupyter writes it; start anew.")
