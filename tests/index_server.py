"""A small package index on this machine (PEP 503), over http or https, which can do some more for tests of egress.

``/simple/`` has one package, ``vmk-tiny``. ``/bytes/N`` sends N bytes, ``/take`` says how many it was sent,
``/to/URL`` redirects there, ``/slow`` begins an answer that never ends.
"""

from __future__ import annotations

import hashlib
import io
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WHEEL = "vmk_tiny-1.0-py3-none-any.whl"


def make_wheel() -> bytes:
    """A package of one module."""
    data, info = io.BytesIO(), "vmk_tiny-1.0.dist-info"
    with zipfile.ZipFile(data, "w") as wheel:
        wheel.writestr("vmk_tiny.py", "answer = 42")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: vmk-tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return data.getvalue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wheel = make_wheel()

    def do_GET(self) -> None:
        match self.path.strip("/").split("/", 1):
            case ["simple", "vmk-tiny"]:
                digest = hashlib.sha256(self.wheel).hexdigest()
                self._answer(f"<!DOCTYPE html><a href='/files/{WHEEL}#sha256={digest}'>{WHEEL}</a>".encode())
            case ["files", name] if name == WHEEL:
                self._answer(self.wheel, "application/octet-stream")
            case ["bytes", number]:
                self._answer(bytes(range(250)) * (int(number) // 250), "application/octet-stream")
            case ["to", url]:
                self.send_response(302)
                self.send_header("Location", url)
                self.send_header("Content-Length", "0")
                self.end_headers()
            case ["slow"]:
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"begun")
                self.rfile.read(1)  # until the client goes
                self.close_connection = True
            case _:
                self.send_error(404)

    def do_POST(self) -> None:
        left = size = int(self.headers["Content-Length"])
        while left and (data := self.rfile.read(min(left, 1 << 16))):
            left -= len(data)
        self._answer(str(size - left).encode())

    def _answer(self, data: bytes, kind: str = "text/html") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def index_server(certificate: Path | None = None) -> Iterator[int]:
    """Serve on a port of the loopback interface, by https if there is a certificate with its key. Gives the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_certificate(folder: Path) -> Path:
    """A certificate of an authority of its own for ``localhost``, and its key, in one file."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=localhost"]
    extensions = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *extensions, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    certificate.write_text(certificate.read_text() + key.read_text())
    return certificate
