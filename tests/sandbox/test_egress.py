"""The network by permission, for programs: allowed names, refusals, forks, and what a hostile guest can make of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import eventually
from tests.egress_profile import THROUGH_PROXY, audited, egress_profile
from tests.index_server import index_server
from vm_kernel import Sandbox

GET = f"{THROUGH_PROXY}import urllib.request\ndef get(url): return urllib.request.urlopen(url, timeout=200).read()\n"
KILL_WORKER = """
import os, pathlib
workers = [p for p in pathlib.Path('/proc').glob('[0-9]*') if b'guest_agent.agent' in (p / 'cmdline').read_bytes()]
mine = [int(p.name) for p in workers if p.stat().st_uid == os.getuid()]
for pid in mine:
    os.kill(pid, 9)
print(len(mine))
"""


@pytest.fixture(scope="module")
def port(warm_pool: None) -> Iterator[int]:
    with index_server() as port, egress_profile(port):
        yield port


async def test_sandboxes_and_their_forks_reach_what_their_profile_allows(port: int) -> None:
    slow, small = f"http://localhost:{port}/slow", f"http://localhost:{port}/bytes/1000"
    async with Sandbox("open") as box:
        assert box.vm is not None
        await box.execute(f"{GET}answer = urllib.request.urlopen({slow!r}, timeout=200); answer.read(5)")
        assert (await box.execute(f"print(len(get({small!r})))")).stdout == "1000\n"
        (child,) = await box.fork()
        async with child:
            assert child.vm is not None
            for one in (box, child):
                lost = await one.execute("answer.read()")
                assert lost.error is not None
                assert lost.error.name in ("ConnectionResetError", "IncompleteRead")
                assert (await one.execute(f"print(len(get({small!r})))")).stdout == "1000\n"
            refused = await child.execute("get('http://pypi.org/')")
            assert refused.error is not None
            assert "403" in refused.error.message
            names = [box.vm.name, child.vm.name]
        # a program of the user's may do to the worker what it likes: another one serves
        killed = await box.execute(KILL_WORKER)
        assert killed.stdout == "1\n"
        assert (await box.execute(f"print(len(get({small!r})))")).stdout == "1000\n"
    await eventually(
        lambda: all("closed" in {event["verdict"] for event in audited(name)} for name in names), 30, "both are noted"
    )
    assert [event["host"] for event in audited(names[1]) if event["verdict"] == "refused"] == ["pypi.org"]
