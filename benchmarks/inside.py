"""What a request costs inside a guest by itself: a client and an ipykernel there, with nothing of ours between them.

The ipykernel is a second one in the same VM, started by the same launcher and idle otherwise: the agent would forward
the first one's output to the host, and its work is not the guest's own.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks import thin

_FOLDER = "/tmp/bench"
_LAUNCHER = "/opt/vm-kernel/guest_agent/launch.py"
_START = """
import pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
folder.mkdir()
(folder / "thin.py").write_text({source!r})
log = (folder / "log").open("w")
bench = subprocess.Popen(
    [sys.executable, "-s", folder / "thin.py", {launcher!r}, folder],
    stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
)
"""
_ORDER = "bench.stdin.write({line!r}); bench.stdin.flush()"
_LOOK = """
if bench.poll() is not None:
    raise RuntimeError((folder / "log").read_text()[-2000:])
seen = (folder / "results").read_text().splitlines() if (folder / "results").exists() else []
"""


class Inside:
    """The client inside the guest, ordered about through cells of that guest's own session."""

    def __init__(self, session: thin.Client) -> None:
        """``session``: a client of the kernel whose VM it is. Returns when everything is warm."""
        self._session = session
        self._taken = 0
        source = Path(thin.__file__).read_text()
        self._run(_START.format(folder=_FOLDER, launcher=_LAUNCHER, source=source))
        self._next(1.0)

    def ask(self, name: str, count: int, usual_s: float) -> list[float]:
        """Seconds of each of ``count`` requests. ``usual_s``: when to begin to look, because looking disturbs."""
        self._run(_ORDER.format(line=f"{name} {count}\n"))
        return self._next(usual_s)

    def _next(self, usual_s: float) -> list[float]:
        time.sleep(usual_s)
        deadline = time.monotonic() + thin.TIMEOUT_S
        while time.monotonic() < deadline:
            lines = self._run(_LOOK)
            if len(lines) > self._taken:
                self._taken += 1
                return lines[self._taken - 1]
            time.sleep(0.5)
        raise RuntimeError("the client inside the guest does not answer")

    def _run(self, code: str) -> list[list[float]]:
        content = {**thin.CELL, "code": code, "user_expressions": {"seen": "'\\n'.join(globals().get('seen', []))"}}
        _, reply = self._session.ask_for("execute_request", content)
        if reply["status"] != "ok":
            raise RuntimeError(f"in the guest: {reply['ename']}: {reply['evalue']}")
        text = reply["user_expressions"]["seen"]["data"]["text/plain"]
        return [json.loads(line) for line in text.strip("'\"").split("\\n") if line]
