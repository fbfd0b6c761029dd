"""A Jupyter server with JupyterLab, as ``make lab`` starts it, and the little of its REST API that tests need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import wait_until

START_TIMEOUT_S = 60.0
#: Lab fetches news, looks for updates, and asks for the name of a file that it saves: not in a test
SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"renameUntitledFileOnSave": False},
    # Lab shows no completion that takes longer than a second; on a loaded machine without KVM the first one does
    "@jupyterlab/completer-extension:manager": {"providerTimeout": 30000},
}
#: Lab asks at each page load, with a second of Node's, whether its assets are to be built anew
PAGE_CONFIG = {"buildCheck": False}


class LabServer:
    """A running server. ``root`` is the folder that it shows."""

    def __init__(self, url: str, token: str, root: Path) -> None:
        self.url = url
        self.token = token
        self.root = root

    def request(self, method: str, path: str, body: object = None) -> Any:
        """Answer of the REST API, decoded. Raises HTTPError."""
        request = urllib.request.Request(
            f"{self.url}api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}"},
        )
        with urllib.request.urlopen(request, timeout=START_TIMEOUT_S) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def answers(self) -> bool:
        """False as long as nobody listens: the server writes down its port before."""
        try:
            self.request("GET", "status")
        except OSError:
            return False
        return True

    def end_kernels(self) -> None:
        """End every kernel, as closing all of them in Lab's side bar does."""
        for kernel in self.request("GET", "kernels"):
            self.request("DELETE", f"kernels/{kernel['id']}")


@contextmanager
def lab_server(home: Path, root: Path) -> Iterator[LabServer]:
    """Start a server in the environment of the tests, which is below ``home``; it ends with the block."""
    settings = Path(os.environ["JUPYTER_CONFIG_DIR"], "labconfig", "default_setting_overrides.json")
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(json.dumps(SETTINGS))
    settings.with_name("page_config.json").write_text(json.dumps(PAGE_CONFIG))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += [f"--ServerApp.root_dir={root}", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    with (home / "jupyter-lab.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=root, stdout=log, stderr=log)
    info = Path(os.environ["JUPYTER_RUNTIME_DIR"], f"jpserver-{process.pid}.json")

    def started() -> bool:
        assert process.poll() is None, (home / "jupyter-lab.log").read_text()
        return info.exists()

    try:
        wait_until(started, START_TIMEOUT_S, "the Jupyter server has a port")
        facts = json.loads(info.read_text())
        server = LabServer(facts["url"], facts["token"], root)
        wait_until(server.answers, START_TIMEOUT_S, "the Jupyter server answers")
        yield server
        server.end_kernels()
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)
