"""``box.files`` on real VMs: files between host and guest, beside running code. What it does in detail: tests/guest."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
from pathlib import Path

import pytest

from guest_agent.tree_writer import STAGING_PREFIX
from tests.conftest import eventually, qemu_of
from vm_kernel import FilesystemShare, Sandbox, SyncSandbox, paths
from vm_kernel.errors import FilesystemError, SandboxClosed, VMDied


async def stdout(box: Sandbox, code: str) -> str:
    result = await box.execute(code, timeout=90)
    assert result.ok, result.error
    return result.stdout


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def noted() -> list[tuple[str, str, int, str]]:
    """What the pool's audit log says of a sandbox's files."""
    lines = [json.loads(line) for line in paths.audit_log().read_text().splitlines()]
    found = [line for line in lines if line["event"] == "files" and line["kernel_id"] == "a-tree"]
    return [(line["action"], line["path"], line["files"], line["status"]) for line in found]


async def test_code_reads_what_the_host_wrote_and_the_other_way_round(vm_home: Path, tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "run.sh").chmod(0o755)
    content = os.urandom(1_000_000)
    async with Sandbox() as box:
        assert isinstance(box.files, FilesystemShare)
        await box.files.write_file("data/naïve 文件.txt", "grün")
        await box.files.write_file("data/empty", b"")
        await box.files.write_file("/tmp/random.bin", content)
        await box.files.write_file("bin/run.sh", tmp_path / "run.sh")
        code = (
            "import os, subprocess\nprint(open('data/naïve 文件.txt').read(), os.path.getsize('data/empty'))\n"
            "print(subprocess.check_output('bin/run.sh', text=True), os.stat('data').st_uid, os.getuid())\n"
            "open('back.bin', 'wb').write(open('/tmp/random.bin', 'rb').read()[::-1]);"
        )
        assert await stdout(box, code) == "grün 0\nran\n 1000 1000\n"
        assert await box.files.read_file("back.bin") == content[::-1]
        listed = {entry.name: entry.kind for entry in await box.files.list() if not entry.name.startswith(".")}
        assert listed == {"back.bin": "file", "bin": "folder", "data": "folder"}


async def test_a_tree_goes_in_and_results_come_out(vm_home: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "a/b/c/d").mkdir(parents=True)
    (project / "a/b/c/d/deep.txt").write_text("deep")
    (project / "link").symlink_to("/etc/passwd")
    (project / ".secret").write_text("stays at home")
    async with Sandbox(name="a-tree") as box:
        put = await box.files.put_tree(project, "project")
        assert (put.files, put.skipped) == (1, [("link", "a symbolic link")])
        await stdout(
            box,
            "import os\nos.makedirs('out/plots')\nfor n in range(30): open(f'out/plots/{n}.csv', 'w').write(str(n))\n"
            "open('out/log.txt', 'w').write('x'); os.symlink('/etc/shadow', 'out/plots/evil.csv')",
        )
        got = await box.files.get_tree("out", tmp_path / "results", pattern="**/*.csv")
        assert (got.files, got.skipped) == (30, [("plots/evil.csv", "a symbolic link")])
        assert names_in(tmp_path / "results/plots") == sorted(f"{n}.csv" for n in range(30))
        assert not (tmp_path / "results/log.txt").exists()
        with pytest.raises(FilesystemError):
            await box.files.read_file("none")
        await eventually(lambda: len(noted()) == 3, 60.0, "the transfers are in the audit log")
    assert noted() == [("put", "project", 1, "ok"), ("get", "out", 30, "ok"), ("get", "none", 0, "error")]


async def test_fifty_megabytes_while_a_cell_runs(vm_home: Path) -> None:
    content = os.urandom(50_000_000)
    async with Sandbox("roomy") as box:
        running = asyncio.ensure_future(
            box.execute("import time\nfor n in range(100000):\n    print(n, flush=True); time.sleep(0.05)")
        )
        seen: list[tuple[int, int]] = []
        await box.files.write_file("large", content, progress=lambda done, total: seen.append((done, total)))
        assert not running.done()
        assert await box.files.read_file("large") == content
        assert not running.done()
        assert seen[-1] == (50_000_000, 50_000_000)
        # what is urgent is not held up by a transfer
        reading = asyncio.ensure_future(box.files.read_file("large"))
        await asyncio.sleep(0.2)
        box.interrupt()
        result = await asyncio.wait_for(running, 60)
        assert result.error is not None
        assert result.error.name == "KeyboardInterrupt"
        assert len(await reading) == 50_000_000


async def test_a_full_disk_is_named_and_leaves_nothing(vm_home: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/small").write_bytes(b"x")
    (tmp_path / "tree/zlarge").write_bytes(bytes(20_000_000))
    async with Sandbox("roomy") as box:
        await stdout(
            box,
            "import os\nfree = os.statvfs('/dev/shm'); size = free.f_bavail * free.f_bsize - 10_000_000\n"
            "with open('/dev/shm/fill', 'wb') as file: os.posix_fallocate(file.fileno(), 0, size)",
        )
        with pytest.raises(FilesystemError, match="zlarge: No space left on device") as caught:
            await box.files.put_tree(tmp_path / "tree", "/dev/shm/tree")
        assert caught.value.path == "zlarge"
        assert pickle.loads(pickle.dumps(caught.value)).path == "zlarge"
        assert await stdout(box, "print(os.listdir('/dev/shm'))") == "['fill']\n"


async def test_what_the_vm_has_no_room_or_no_right_for_is_refused(vm_home: Path, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(400_000_000)
    async with Sandbox() as box:
        await stdout(box, "x = 1")
        with pytest.raises(FilesystemError, match="no room for 400000000 bytes"):
            await box.files.write_file("sparse", tmp_path / "sparse")
        for path in ("/root/x", "/etc/x", "/usr/bin/x"):
            with pytest.raises(FilesystemError, match="Permission denied"):
                await box.files.write_file(path, b"x")
        with pytest.raises(FilesystemError, match="Permission denied"):
            await box.files.read_file("/etc/shadow")
        assert await stdout(box, "print(x)") == "1\n"


async def test_a_cancelled_transfer_leaves_nothing(vm_home: Path, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(60_000_000))
    async with Sandbox() as box:
        begun = asyncio.Event()
        writing = asyncio.ensure_future(
            box.files.write_file("large", tmp_path / "large", progress=lambda done, total: begun.set())
        )
        await asyncio.wait_for(begun.wait(), 60)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await stdout(box, "import os\nos.makedirs('out'); open('out/large', 'wb').write(bytes(60_000_000))")
        names = [entry.name for entry in await box.files.list()]
        assert "out" in names
        assert not [name for name in names if name == "large" or name.startswith(STAGING_PREFIX)]
        begun.clear()
        reading = asyncio.ensure_future(
            box.files.get_tree("out", tmp_path / "got", progress=lambda done, total: begun.set())
        )
        await asyncio.wait_for(begun.wait(), 60)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert names_in(tmp_path) == ["large"]


async def test_a_vm_that_is_killed_in_the_middle_is_an_error_and_leaves_nothing(vm_home: Path, tmp_path: Path) -> None:
    async with Sandbox() as box:
        await stdout(box, "import os\nos.makedirs('out'); open('out/large', 'wb').write(bytes(60_000_000))")
        assert box.vm is not None
        pid = qemu_of(vm_home, box.vm.name)

        def kill(done: int, total: int) -> None:
            if pid and done > 0:
                os.kill(pid, signal.SIGKILL)

        with pytest.raises(VMDied):
            await box.files.get_tree("out", tmp_path / "got", progress=kill)
        assert names_in(tmp_path) == []
        with pytest.raises(VMDied):
            await box.files.read_file("out/large")
        await box.restart()
        await box.files.write_file("again", b"x")


async def test_cleanup_removes_what_the_share_put_and_nothing_else(vm_home: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a").write_text("a")
    async with Sandbox() as box:
        await stdout(box, "import os; os.makedirs('theirs/empty')")
        await box.files.put_tree(tmp_path, "theirs")
        await box.files.put_tree(tmp_path, "new/folder")
        await box.files.write_file("/tmp/one", b"1")
        await stdout(box, "open('new/mine', 'w').write('x')")
        assert await box.files.cleanup() == 6  # three files; theirs/sub, new/folder/sub, new/folder
        assert await box.files.cleanup() == 0
        code = "print(sorted(os.listdir('theirs')), os.listdir('new'), os.path.exists('/tmp/one'))"
        assert await stdout(box, code) == "['empty'] ['mine'] False\n"


async def test_the_worker_has_the_users_rights_and_nothing_of_the_agents(vm_home: Path) -> None:
    async with Sandbox() as box:
        await box.files.write_file("x", b"x")
        code = (
            "import os\nfor pid in filter(str.isdigit, os.listdir('/proc')):\n"
            "    if pid != '1' and b'guest_agent.agent' in open(f'/proc/{pid}/cmdline', 'rb').read():\n"
            "        status = dict(line.split(':\\t') for line in open(f'/proc/{pid}/status') if ':\\t' in line)\n"
            "        print(status['Uid'].split(), status['Groups'].split(), status['CapEff'].strip())"
        )
        assert await stdout(box, code) == "['1000', '1000', '1000', '1000'] [] 0000000000000000\n"


async def test_without_a_vm_the_cause_is_raised(vm_home: Path) -> None:
    box = Sandbox()
    with pytest.raises(SandboxClosed, match="not been started"):
        await box.files.read_file("x")
    async with box:
        pass
    with pytest.raises(SandboxClosed, match="closed"):
        await box.files.write_file("x", b"")


def test_the_blocking_twin(vm_home: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    with SyncSandbox() as box:
        box.files.write_file("a/file", "text", progress=lambda done, total: seen.append(done))
        assert box.files.read_file("a/file") == b"text"
        assert [entry.name for entry in box.files.list("a")] == ["file"]
        assert box.files.get_tree("a", tmp_path / "got").files == 1
        assert box.files.put_tree(tmp_path / "got", "b").files == 1
        assert box.files.cleanup() == 4
        with pytest.raises(FilesystemError, match="a/file"):
            box.files.read_file("a/file")
    assert seen == [0, 4]
    with pytest.raises(SandboxClosed):
        box.files.list()


async def test_many_small_files(vm_home: Path, tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / "in" / str(number // 50)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / str(number // 50) / str(number)).write_text(str(number))
    async with Sandbox() as box:
        assert (await box.files.put_tree(tmp_path / "in", "in")).files == 500
        assert (await box.files.get_tree("in", tmp_path / "out")).files == 500
    assert (tmp_path / "out/9/499").read_text() == "499"


async def test_files_go_on_after_a_restore_and_in_forks(vm_home: Path) -> None:
    async with Sandbox() as box:
        await box.files.write_file("file", "old")
        # a snapshot waits for the end of what is on its way
        writing = asyncio.ensure_future(box.files.write_file("large", bytes(30_000_000)))
        await box.snapshots.create("here")
        await writing
        await box.files.write_file("file", "new")
        await box.snapshots.restore("here")
        assert await box.files.read_file("file") == b"old"
        (child,) = await box.fork()
        async with child:
            await child.files.write_file("file", "the child's")
            assert await child.files.read_file("file") == b"the child's"
        assert await box.files.read_file("file") == b"old"
