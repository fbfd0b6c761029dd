"""The network by permission, in a notebook: an index on this machine is reached, and nothing that is not listed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conftest import StartKernel, eventually
from tests.egress_profile import THROUGH_PROXY, audited, egress_profile
from tests.index_server import index_server, make_certificate
from tests.kernel.session import Session
from vm_kernel.kernel.spec import install

#: pip needs its time under emulation
pytestmark = pytest.mark.timeout(400)
GET = (
    THROUGH_PROXY
    + """
import urllib.request, urllib.error
def get(url):
    try:
        with urllib.request.urlopen(url, timeout=200) as answer:
            return len(answer.read())
    except urllib.error.HTTPError as error:
        return error.read().decode()
    except OSError as error:
        return str(error)
"""
)


@pytest.fixture(scope="module")
def certificate_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def certificate(certificate_file: Path) -> str:
    """Without its key."""
    return certificate_file.read_text().partition("-----BEGIN PRIVATE")[0]


@pytest.fixture(scope="module")
def ports(certificate_file: Path, warm_pool: None) -> Iterator[tuple[int, int]]:
    """Of the index, by http and by https."""
    with index_server() as http, index_server(certificate_file) as https, egress_profile(http, https):
        yield http, https


@pytest_asyncio.fixture
async def session(ports: tuple[int, int], start_kernel: StartKernel) -> AsyncIterator[Session]:
    """A client of a kernel whose profile permits the index."""
    install(name="vm-sandbox-open", profile="open")
    async with start_kernel("vm-sandbox-open") as (_, client):
        yield Session(client)


async def vm_of(session: Session) -> str:
    return str((await session.run("import socket; socket.gethostname()")).value.strip("'"))


async def test_pip_installs_from_a_permitted_index(session: Session, ports: tuple[int, int]) -> None:
    await session.run(THROUGH_PROXY)
    options = f"--timeout 100 --disable-pip-version-check --index-url http://localhost:{ports[0]}/simple/"
    cell = await session.run(f"%pip install {options} vmk-tiny", 300)
    assert "Successfully installed vmk-tiny-1.0" in cell.stream(), cell.stream("stderr")
    assert (await session.run("import vmk_tiny; vmk_tiny.answer")).value == "42"


async def test_https_goes_through_as_it_is(session: Session, ports: tuple[int, int], certificate: str) -> None:
    await session.run(GET)
    await session.run(f"import ssl; trusted = ssl.create_default_context(cadata={certificate!r})")
    url = f"https://localhost:{ports[1]}/simple/vmk-tiny/"
    cell = await session.run(f"urllib.request.urlopen({url!r}, context=trusted, timeout=200).read()", 200)
    assert "vmk_tiny-1.0-py3-none-any.whl" in cell.value
    shell = await session.run("!echo $https_proxy; env | grep -ci _proxy=")
    assert shell.stream().split() == ["http://127.0.0.1:3128", "6"]


async def test_nothing_else_is_reached_and_the_answer_says_why(session: Session, ports: tuple[int, int]) -> None:
    await session.run(GET)

    async def get(url: str) -> str:
        return (await session.run(f"print(get({url!r}))", 200)).stream().strip()

    here = f"http://localhost:{ports[0]}"
    assert await get(f"{here}/bytes/1000000") == "1000000"
    refused = await get("https://pypi.org/simple/")
    assert "403 Forbidden: The profile 'open' of this session may not reach pypi.org:443" in refused
    assert "'allow' (c.PoolConfig.profiles) lacks 'pypi.org'" in refused
    assert "may not reach localhost:80" in await get("http://localhost/")
    for target in (
        "http://169.254.169.254/latest/meta-data/",
        f"http://127.0.0.1:{ports[0]}/",
        f"http://[::1]:{ports[0]}/",
    ):
        assert "is no name: VMs reach hosts by name alone" in await get(target)
        assert "is no name" in await get(f"{here}/to/{target}"), "a redirect leads no further"
    assert "cannot resolve unresolvable.invalid" in await get("http://unresolvable.invalid/")
    vm = await vm_of(session)
    assert (await session.run("%vm_info")).of("display_data")[0]["data"]["text/plain"].count(
        f"localhost:{ports[0]}"
    ) == 1

    def logged() -> bool:
        return {
            ("refused", "pypi.org", 443),
            ("failed", "unresolvable.invalid", 80),
            ("closed", "localhost", ports[0]),
        } <= {(event["verdict"], event["host"], event["port"]) for event in audited(vm)}

    await eventually(logged, 60.0, "the audit log has every attempt")
    most = max(audited(vm), key=lambda event: event["received_bytes"])
    assert most["received_bytes"] > 1_000_000
    assert most["address"] == "127.0.0.1"


async def test_connections_end_with_a_checkpoint_and_new_ones_can_be_made_after_a_rollback(
    session: Session, ports: tuple[int, int]
) -> None:
    await session.run(
        GET
        + f"answer = urllib.request.urlopen('http://localhost:{ports[0]}/slow', timeout=200)\nbegun = answer.read(5)"
    )
    assert (await session.run("begun")).value == "b'begun'"
    vm = await vm_of(session)
    assert (await session.run("%checkpoint here")).status == "ok"
    cell = await session.run("answer.read()")
    assert cell.reply["content"]["ename"] in ("ConnectionResetError", "IncompleteRead")
    assert (await session.run(f"get('http://localhost:{ports[0]}/bytes/1000')")).value == "1000"
    assert (await session.run("%rollback here")).status == "ok"
    assert (await session.run("answer.read()")).reply["content"]["ename"] in ("ConnectionResetError", "IncompleteRead")
    assert (await session.run(f"get('http://localhost:{ports[0]}/bytes/1000')")).value == "1000"
    assert "the guest has dropped all connections" in {event["reason"] for event in audited(vm)}


async def test_a_session_without_permission_has_no_proxy(warm_pool: None, start_kernel: StartKernel) -> None:
    async with start_kernel() as (_, client):
        session = Session(client)
        code = "import os, socket\n[name for name in os.environ if 'proxy' in name.lower()], socket.socket().connect_ex"
        assert (await session.run(f"{code}(('127.0.0.1', 3128))")).value == "([], 111)"
        assert "none" in (await session.run("%vm_info")).of("display_data")[0]["data"]["text/plain"]
