"""Measures the way out of a VM: a server on this machine, through the proxy and directly, with the same client code."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.environment import CONFIG, wait_until_quiet
from benchmarks.samples import OURS, STOCK, Results
from vm_kernel import SyncSandbox
from vm_kernel.pool.client import PoolConnection

SIZE = 20_000_000
#: run in the VM, where the environment names the proxy, and on the host
CLIENT = """
import json, os, time, urllib.request
def measure_egress(url, size, rounds):
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ""
    found = []
    for wanted in [0, size] * rounds:
        begin = time.perf_counter()
        got = len(urllib.request.urlopen(url + str(wanted)).read())
        assert got == wanted, got
        found.append(time.perf_counter() - begin)
    return found[0::2], found[1::2]
"""


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        size = int(self.path.rpartition("/")[2])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(bytes(size))

    def log_message(self, *_: object) -> None:
        """Nothing."""


def measure_egress(results: Results, rounds: int) -> None:
    """Requests without content, and of 20 MB: both by plain http, each over a connection of its own."""
    here: dict[str, Any] = {}
    exec(CLIENT, here)
    with _server() as port:
        url = f"http://localhost:{port}/"
        with _allowed(f"localhost:{port}"), SyncSandbox("open") as box:
            box.execute(CLIENT)
            box.execute(f"measure_egress({url!r}, 1, 2)")  # the emulator's cache is cold, the worker not there
            wait_until_quiet()
            call = f"measure_egress({url!r}, {SIZE}, {rounds})"
            said = box.execute(f"print(json.dumps({call}))")
            if said.error is not None:
                raise RuntimeError(f"{said.error.name}: {said.error.message}")
            _add(results, OURS, *json.loads(said.stdout))
            _add(results, STOCK, *here["measure_egress"](url, SIZE, rounds))


def _add(results: Results, side: str, empty: list[float], full: list[float]) -> None:
    for seconds in empty:
        results.add("egress_request", 1000 * seconds, side)
    for seconds in full:
        results.add("egress_stream", SIZE / 1e6 / seconds, side)


@contextmanager
def _server() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _allowed(name: str) -> Iterator[None]:
    """A profile that permits it, as long as it is measured."""
    config = Path(os.environ["JUPYTER_CONFIG_DIR"], "vm_kernel_config.py")
    settings = {"min_warm": 0, "allow": [name], "allow_private": ["127.0.0.1/32"]}
    _configure(config, f"{CONFIG}\nc.PoolConfig.profiles['open'] = {settings!r}")
    try:
        yield
    finally:
        _configure(config, CONFIG)


def _configure(config: Path, text: str) -> None:
    config.write_text(text)
    connection = PoolConnection.open()
    connection.reload()
    connection.close()
