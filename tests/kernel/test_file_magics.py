"""%vm_put and %vm_get in a notebook: what they copy, and what a notebook that nobody trusts does not get from them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from jupyter_client.manager import AsyncKernelManager

from tests.conftest import CONFIG, StartKernel, wait_until, write_config
from tests.kernel.session import Cell, Session, vm_of
from vm_kernel import paths
from vm_kernel.config import PoolConfig
from vm_kernel.errors import ConfigError
from vm_kernel.kernel.spec import install
from vm_kernel.pool.client import PoolConnection

PROFILES = """
c.PoolConfig.profiles = {
    "trusted": {"files": "both", "min_warm": 1},
    "fetching": {"files": "get", "min_warm": 0},
}
"""


@pytest.fixture(scope="module")
def profiles(warm_pool: None) -> Iterator[None]:
    """A kernel for each of the profiles, and a VM of the one that is used most."""
    for name in ("trusted", "fetching"):
        install(name=f"vm-sandbox-{name}", profile=name)
    reload(CONFIG + PROFILES)
    connection = PoolConnection.open()
    connection.acquire("trusted")
    connection.close()
    yield
    reload(CONFIG)


def reload(config: str) -> None:
    """The service goes on with another configuration."""
    write_config(config)
    connection = PoolConnection.open()
    connection.reload()
    connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The notebook's folder, with a neighbour that is nobody's business."""
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "notebooks"
    (folder / "data/deep").mkdir(parents=True)
    (folder / "data/a.csv").write_text("1,2\n")
    (folder / "data/deep/b.csv").write_text("3,4\n")
    (folder / "data/.hidden").write_text("hidden")
    (folder / ".token").write_text("hidden")
    (folder / "link").symlink_to(tmp_path)
    (folder / "secret-link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


@pytest_asyncio.fixture
async def kernel(
    profiles: None, start_kernel: StartKernel, folder: Path
) -> AsyncIterator[tuple[AsyncKernelManager, Session]]:
    async with start_kernel("vm-sandbox-trusted", cwd=folder) as (manager, client):
        yield manager, Session(client)


@pytest_asyncio.fixture
async def session(kernel: tuple[AsyncKernelManager, Session]) -> Session:
    return kernel[1]


def shown(cell: Cell, kind: str = "text/plain") -> str:
    """The last thing that the cell has shown."""
    assert cell.status == "ok", cell.reply["content"]
    return str([*cell.of("display_data"), *cell.of("update_display_data")][-1]["data"][kind])


def refused(cell: Cell) -> str:
    assert cell.status == "error", cell.iopub
    assert cell.reply["content"]["ename"] in ("FilesystemError", "UsageError")
    return str(cell.reply["content"]["evalue"])


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


async def test_files_and_folders_go_to_the_vm(session: Session) -> None:
    assert shown(await session.run("%vm_put data/a.csv")) == "data/a.csv is in the VM as a.csv: 1 file, 4 bytes."
    assert "as in/x.csv" in shown(await session.run("%vm_put ./data/a.csv in/x.csv"))
    assert "as /tmp/a.csv" in shown(await session.run("%vm_put data/a.csv /tmp/"))
    assert "2 files, 8 bytes" in shown(await session.run("%vm_put data"), "text/html")
    cell = await session.run(
        "import pathlib, glob\n"
        "print(open('a.csv').read(), open('in/x.csv').read(), open('/tmp/a.csv').read())\n"
        "print(sorted(str(p) for p in pathlib.Path('data').rglob('*')))"
    )
    assert cell.stream() == "1,2\n 1,2\n 1,2\n\n['data/a.csv', 'data/deep', 'data/deep/b.csv']\n"
    everything = shown(await session.run("%vm_put . all"))
    assert "Left out: link (a symbolic link)" in everything
    assert "Left out: secret-link.txt (a symbolic link)" in everything
    events = [json.loads(line) for line in paths.audit_log().read_text().splitlines()]
    assert ("put", "a.csv", 1) in [(e["action"], e["path"], e["files"]) for e in events if e["event"] == "files"]


async def test_files_and_folders_come_from_the_vm(session: Session, folder: Path) -> None:
    await session.run(
        "import os\nos.makedirs('out/plots')\n"
        "for name in ('out/a.csv', 'out/plots/b.csv', 'out/log.txt', 'out/.x'): open(name, 'w').write(name)\n"
        "os.symlink('/etc/passwd', 'out/passwd')"
    )
    before = names_in(folder)
    assert shown(await session.run("%vm_get out/a.csv")).startswith("out/a.csv is in the notebook's folder as a.csv")
    assert (folder / "a.csv").read_text() == "out/a.csv"
    await session.run("%vm_get out/a.csv data/renamed.csv")
    assert (folder / "data/renamed.csv").read_text() == "out/a.csv"
    await session.run("%vm_get out/a.csv new/folder/")
    assert (folder / "new/folder/a.csv").exists()
    assert "Left out: passwd (a symbolic link)" in shown(await session.run("%vm_get out"))
    assert names_in(folder / "out") == ["a.csv", "log.txt", "plots", "plots/b.csv"]
    await session.run("%vm_get out only --pattern '**/*.csv'")
    assert names_in(folder / "only") == ["a.csv", "plots", "plots/b.csv"]
    # what is there stays, unless it is said
    (folder / "a.csv").write_text("mine")
    assert "a.csv: is there already.\n--force" in refused(await session.run("%vm_get out/a.csv"))
    assert "is there already.\n--force" in refused(await session.run("%vm_get out"))
    assert (folder / "a.csv").read_text() == "mine"
    await session.run("%vm_get --force out/a.csv")
    assert (folder / "a.csv").read_text() == "out/a.csv"
    assert set(before) < set(names_in(folder))


async def test_nothing_beyond_the_notebooks_folder_is_read_or_written(session: Session, folder: Path) -> None:
    await session.run("import os; os.makedirs('out'); open('out/file', 'w').write('evil')")
    before = names_in(folder.parent)
    for cell in (
        "%vm_put ../secret.txt",
        "%vm_put data/../../secret.txt",
        f"%vm_put {folder.parent}/secret.txt",
        "%vm_put /etc/passwd",
        "%vm_put link/secret.txt",
        "%vm_put secret-link.txt",
        "%vm_put link",
        "%vm_put .token",
        "%vm_put data/.hidden",
        "%vm_put ~/.ssh/id_rsa",
        "%vm_put none.txt",
        "%vm_get out/file ../planted",
        f"%vm_get out/file {folder.parent}/planted",
        "%vm_get out/file link/planted",
        "%vm_get out/file secret-link.txt --force",
        "%vm_get out/file .planted",
        "%vm_get out .planted",
        "%vm_get out link/planted",
        "%vm_get out link",
        "%vm_get /etc/shadow",
        "%vm_get out/none",
        "%vm_run_input",
        "%vm_run_collect",
    ):
        refused(await session.run(cell))
    assert names_in(folder.parent) == before
    assert (folder.parent / "secret.txt").read_text() == "secret"
    assert (await session.run("import os; print(sorted(os.listdir()))")).stream().count("secret") == 0


async def test_the_default_allows_nothing_and_says_how(start_kernel: StartKernel, profiles: None, folder: Path) -> None:
    async with start_kernel(cwd=folder) as (_, client):
        session = Session(client)
        for cell in ("%vm_put data", "%vm_get /etc/hostname"):
            assert "c.PoolConfig.files = " in refused(await session.run(cell))
        assert "off" in shown(await session.run("%vm_put --help"))
        # cells behind a failed one do not run, as with any other
        ids = [client.execute(code) for code in ("%vm_put data", "x = 1")]
        assert [(await session.finish(each)).status for each in ids] == ["error", "aborted"]


async def test_a_profile_may_allow_one_direction(start_kernel: StartKernel, profiles: None, folder: Path) -> None:
    async with start_kernel("vm-sandbox-fetching", cwd=folder) as (_, client):
        session = Session(client)
        assert "'files': 'both' in the profile 'fetching'" in refused(await session.run("%vm_put data"))
        await session.run("open('x', 'w').write('y');")
        shown(await session.run("%vm_get x"))
        assert (folder / "x").read_text() == "y"


def test_a_rule_that_is_none_is_refused_when_the_service_starts() -> None:
    config = PoolConfig(profiles={"odd": {"files": "all"}})
    with pytest.raises(ConfigError, match="files"):
        config.profile("odd")


async def test_a_bar_shows_how_far_it_is(session: Session, folder: Path) -> None:
    (folder / "large").write_bytes(os.urandom(20_000_000))
    cell = await session.run("%vm_put large")
    first, *later = [*cell.of("display_data"), *cell.of("update_display_data")]
    assert later, "it was shown more than once"
    assert "<progress" in first["data"]["text/html"]
    assert "of 20.0 MB" in first["data"]["text/plain"]
    assert {content["transient"]["display_id"] for content in later} == {first["transient"]["display_id"]}
    assert "<progress" not in later[-1]["data"]["text/html"]
    (folder / "large").rename(folder / "as-it-was")
    assert "20.0 MB" in shown(await session.run("%vm_get large"))
    assert (folder / "large").read_bytes() == (folder / "as-it-was").read_bytes()


async def test_an_interrupt_ends_a_transfer_and_leaves_nothing(
    kernel: tuple[AsyncKernelManager, Session], folder: Path
) -> None:
    manager, session = kernel
    await session.run("open('large', 'wb').write(bytes(30_000_000));")
    before = names_in(folder)
    running = session.client.execute("%vm_get large")
    await session.until(lambda: any(m["msg_type"] == "display_data" for m in session.iopub.get(running, [])), "a bar")
    await manager.interrupt_kernel()
    cell = await session.finish(running)
    assert cell.reply["content"]["ename"] == "KeyboardInterrupt"
    assert names_in(folder) == before
    assert (await session.run("%checkpoint after")).status == "ok"
    assert "30.0 MB" in shown(await session.run("%vm_get large"))


async def test_a_vm_that_is_killed_leaves_nothing_half_written(
    kernel: tuple[AsyncKernelManager, Session], folder: Path
) -> None:
    manager, session = kernel
    await session.run("open('large', 'wb').write(bytes(30_000_000));")
    before = names_in(folder)
    running = session.client.execute("%vm_get large")
    await session.until(lambda: any(m["msg_type"] == "display_data" for m in session.iopub.get(running, [])), "a bar")
    os.kill(vm_of(manager), signal.SIGKILL)
    cell = await session.finish(running)
    assert cell.reply["content"]["ename"] == "VMDied"
    await asyncio.to_thread(wait_until, lambda: names_in(folder) == before, 20, "the folder is as it was")
