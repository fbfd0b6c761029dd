"""What happens before the first answer: few imports, and none from the notebook's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.session import unready_kernel
from vm_kernel.kernel.spec import KERNEL_NAME, install

#: each costs more than a tenth of the whole start
SLOW = {"argparse", "asyncio", "concurrent.futures", "dataclasses", "inspect", "IPython", "ipykernel", "jupyter_client",
        "jupyter_core", "logging", "structlog", "tornado", "traitlets", "vm_kernel.config", "zmq.asyncio"}  # fmt: skip
#: needed, but not before clients can connect
LATER = {"pathlib", "subprocess", "vm_kernel.kernel.magics", "vm_kernel.kernel.relay", "vm_kernel.pool.client"}

TO_BIND = "from vm_kernel.kernel import app, connection, sockets, wire; import vm_kernel.errors"
TO_RUN = TO_BIND + "; from vm_kernel.kernel.relay import Relay; import vm_kernel.guest.channel, vm_kernel.pool.client"


def loaded_by(code: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys; {code}; print('\\n'.join(sys.modules))"]
    # what measures coverage imports much itself
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return set(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split())


def test_nothing_slow_is_imported() -> None:
    unavoidable = loaded_by("import zmq")  # on Python 3.13 its compiled part imports inspect
    assert not (loaded_by(TO_BIND) - unavoidable) & (SLOW | LATER)
    assert not (loaded_by(TO_RUN) - unavoidable) & SLOW


async def test_files_beside_the_notebook_are_not_imported(
    warm_pool: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # ahead of a kernelspec that the environment may have from an earlier installation
    monkeypatch.setenv("JUPYTER_PATH", str(install(prefix=str(tmp_path / "prefix")).parents[1]))
    for name in ("zmq", "hmac", "vm_kernel", "socket"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit('hijacked')\n")
    monkeypatch.chdir(tmp_path)
    async with unready_kernel(KERNEL_NAME) as (_, session):
        await session.client.wait_for_ready(timeout=60)
        assert (await session.run("1 + 1")).value == "2"
    assert not (tmp_path / "ran").exists()
