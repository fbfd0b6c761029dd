"""Two clients on one kernel, through a Jupyter server's REST API and websockets: two browsers with one notebook."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.lab_server import LabServer, lab_server

TIMEOUT_S = 60.0


class Browser:
    """A client's websocket to one kernel."""

    def __init__(self, server: LabServer, kernel_id: str) -> None:
        self.session = uuid.uuid4().hex
        url = f"{server.url}api/kernels/{kernel_id}/channels?session_id={self.session}&token={server.token}"
        self.socket = websocket.create_connection(url.replace("http", "ws", 1), timeout=TIMEOUT_S)

    def send(self, channel: str, msg_type: str, content: dict[str, Any]) -> str:
        """Send a message; its id."""
        header = {"msg_id": uuid.uuid4().hex, "session": self.session, "username": "", "version": "5.4"}
        message = {"channel": channel, "header": header | {"msg_type": msg_type, "date": "2020-01-01T00:00:00Z"}}
        self.socket.send(json.dumps(message | {"parent_header": {}, "metadata": {}, "content": content}))
        return header["msg_id"]

    def execute(self, code: str) -> str:
        """Run a cell; its id."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": True}
        return self.send("shell", "execute_request", content)

    def until(self, msg_type: str, parent: str) -> list[dict[str, Any]]:
        """All messages up to one of that type which that request has caused."""
        seen: list[dict[str, Any]] = []
        while not seen or (seen[-1]["msg_type"], seen[-1]["parent_header"].get("msg_id")) != (msg_type, parent):
            seen.append(json.loads(self.socket.recv()))
        return seen


@pytest.fixture
def server(kernelspec: str, vm_home: Path, tmp_path: Path) -> Iterator[LabServer]:
    """A Jupyter server."""
    with lab_server(vm_home, tmp_path) as running:
        yield running


def test_two_browsers_share_a_kernel(server: LabServer, kernelspec: str) -> None:
    kernel_id = server.request("POST", "kernels", {"name": kernelspec})["id"]
    ada, bob = Browser(server, kernel_id), Browser(server, kernel_id)
    asks = ada.execute("x = input('Who? ')")
    (question,) = (m for m in ada.until("input_request", asks) if m["channel"] == "stdin")
    assert question["content"]["prompt"] == "Who? "
    ada.send("stdin", "input_reply", {"value": "Ada"})
    seen_by_ada = ada.until("execute_reply", asks)
    assert seen_by_ada[-1]["content"]["status"] == "ok"

    reads = bob.execute("x")
    seen_by_bob = bob.until("execute_reply", reads)
    assert not [m for m in seen_by_bob if m["msg_type"] == "input_request"], "only she who asked is asked"
    assert not [m for m in seen_by_bob if m["parent_header"].get("msg_id") == asks and m["channel"] == "shell"]
    (result,) = (m for m in ada.until("execute_result", reads) if m["msg_type"] == "execute_result")
    assert result["content"]["data"]["text/plain"] == "'Ada'", "what one browser runs, the other sees"
    for browser in (ada, bob):
        browser.socket.close()
