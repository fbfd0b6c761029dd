"""KVM and vsock demanded: where the host cannot have them, everybody who asks is told why, at once, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import vm_kernel, write_notebook
from tests.conftest import StartKernel
from tests.pool.conftest import Configured
from tests.vm.child import in_child
from vm_kernel.errors import HostError
from vm_kernel.image.store import open_image
from vm_kernel.pool.client import PoolConnection
from vm_kernel.sandbox.sync import SyncSandbox
from vm_kernel.vm import host


def refusal(demand: str, cache: Path) -> HostError | None:
    """What the service's user is told who demands it; None if this host can do it."""

    def ask() -> HostError | None:
        try:
            if demand == "kvm":
                host.resolve_accelerator("kvm", cache, open_image("default").kernel)
            else:
                host.resolve_transport("vsock")
        except HostError as error:
            return error
        return None

    found: HostError | None = in_child(ask)
    return found


@pytest.mark.parametrize(("setting", "demand"), [("accelerator", "kvm"), ("transport", "vsock")])
async def test_what_cannot_be_had_is_refused_with_the_cause_and_its_remedy(
    configured: Configured, start_kernel: StartKernel, tmp_path: Path, setting: str, demand: str
) -> None:
    expected = refusal(demand, tmp_path / "probe.json")
    configured(f"c.PoolConfig.{setting} = '{demand}'")
    if expected is None:
        connection = PoolConnection.open()
        assert getattr(connection.acquire().vm, setting) == demand
        connection.close()
        return
    assert f"c.PoolConfig.{setting} = 'auto'" in expected.hint
    words = f"{'KVM' if demand == 'kvm' else 'vsock'} was asked for, but cannot be used: "

    connection = PoolConnection.open()
    with pytest.raises(HostError, match=words) as caught:
        connection.acquire()
    assert str(caught.value).split(" (tried for")[0] == str(expected).split(" (tried for")[0]
    connection.close()

    with pytest.raises(HostError, match=words), SyncSandbox():
        pass

    ran = vm_kernel("run", write_notebook(tmp_path / "n.ipynb", "1"), "--output-dir", tmp_path / "out")
    assert ran.returncode != 0
    assert words in " ".join((ran.stdout + ran.stderr).split())

    checks = {check["name"]: check for check in json.loads(vm_kernel("doctor", "--json").stdout)["checks"]}
    assert checks[setting]["level"] == "fail"
    assert words in checks[setting]["summary"]
    assert checks[setting]["hint"] == expected.hint

    async with start_kernel() as (_, client):
        reply = await client.execute_interactive("1", timeout=60, output_hook=lambda _: None)
    assert reply["content"]["status"] == "error"
    assert words in reply["content"]["evalue"]
