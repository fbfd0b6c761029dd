"""Start, restart, shutdown and death of a kernel process, and cells that have to wait for their VM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager

from tests.conftest import CONFIG, ended, eventually, stop_service, wait_until, write_config
from tests.kernel.session import Session, has_ended, pid_of, unready_kernel, vm_of
from tests.kernel.stalled import stalled_pool


async def test_kernel_info_comes_before_the_vm_and_a_cell_is_told_why_it_waits(
    kernelspec: str, warm_pool: None
) -> None:
    with stalled_pool() as go_on:
        async with unready_kernel(kernelspec) as (_, session):
            msg_id = session.send("kernel_info_request", {})
            await session.until(lambda: msg_id in session.replies, "kernel_info")
            info = session.replies.pop(msg_id)["content"]
            assert (info["status"], info["language_info"]["name"]) == ("ok", "python")
            ids = [session.client.execute(f"print({n})") for n in range(3)]
            completion = session.send("complete_request", {"code": "pri", "cursor_pos": 3})
            await session.until_output(ids[0], "Waiting for a virtual machine")
            await session.drain(0.3)
            assert not session.replies
            assert ids[1] not in session.iopub, "one cell is told, not each of them"
            go_on()
            cells = [await session.finish(msg_id) for msg_id in ids]
            assert [cell.stream("stdout") for cell in cells] == ["0\n", "1\n", "2\n"]
            assert [cell.number for cell in cells] == [1, 2, 3]
            assert [cell.types.count("idle") for cell in cells] == [1, 1, 1]
            assert "print" in (await session.finish(completion)).reply["content"]["matches"]


async def test_without_a_vm_the_cell_says_why_and_a_later_one_finds_it(kernelspec: str, warm_pool: None) -> None:
    stop_service()
    write_config("c.PoolConfig.min_warm = 'many'\n")
    try:
        async with unready_kernel(kernelspec) as (_, session):
            await session.client.wait_for_ready(timeout=60)
            cell = await session.run("print('not run')")
            assert cell.status == "error"
            assert cell.types == ["busy", "execute_input", "error", "idle"]
            content = cell.reply["content"]
            assert content["ename"] == "ConfigError"
            assert "vm_kernel_config.py" in content["evalue"]
            assert cell.of("error")[0]["traceback"][0].startswith("ConfigError: ")
            completion = await session.ask("complete_request", {"code": "pri", "cursor_pos": 3})
            assert completion.reply["content"]["ename"] == "ConfigError"
            status = await session.run("%pool_status")
            assert status.status == "ok"
            assert "not running" in status.of("display_data")[0]["data"]["text/plain"]
            write_config(CONFIG)
            cell = await session.run("print('runs')", timeout_s=150)
            assert (cell.status, cell.stream(), cell.number) == ("ok", "runs\n", 3)
            assert (await session.run("In[3]")).value == "\"print('runs')\""
    finally:
        write_config(CONFIG)
        stop_service()


async def test_an_unknown_profile_is_an_error_in_the_cell(kernelspec: str, warm_pool: None) -> None:
    async with unready_kernel(kernelspec) as (manager, session):
        await session.client.wait_for_ready(timeout=60)
        await manager.restart_kernel(extra_arguments=["--profile", "nosuch"])
        await session.client.wait_for_ready(timeout=60)
        content = (await session.run("1")).reply["content"]
        assert content["ename"] == "UnknownProfile"
        assert "nosuch" in content["evalue"]


async def test_shutdown_is_answered_and_the_vm_has_gone(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    await session.run("1")
    vm = vm_of(manager)
    answer = await session.ask("shutdown_request", {"restart": False}, "control")
    assert answer.reply["content"] == {"status": "ok", "restart": False}
    assert answer.types == ["busy", "shutdown_reply", "idle"]
    await has_ended(manager)
    assert await manager.provisioner.wait() == 0  # type: ignore[union-attr]
    await eventually(lambda: ended(vm), 60.0, "the VM has gone")


async def test_restart_is_quick_and_forgets_everything(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    await session.run("x = 1")
    running = session.client.execute("print('begun', flush=True)\nwhile True: pass")
    await session.until_output(running, "begun")
    manager.shutdown_wait_time = 120
    started = time.monotonic()
    await manager.restart_kernel()
    assert time.monotonic() - started < 60, "the former kernel process must not be waited for"
    await session.client.wait_for_ready(timeout=60)
    cell = await session.run("x")
    assert cell.reply["content"]["ename"] == "NameError"
    assert cell.number == 1


async def test_output_right_after_a_restart_is_not_lost(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, session = kernel
    for number in range(3):
        await manager.restart_kernel()
        # no waiting for anything: the channels reconnect one by one, shell perhaps before iopub
        cell = await session.run(f"print({number})")
        assert cell.stream("stdout") == f"{number}\n"


async def test_the_vm_of_a_killed_kernel_process_goes_within_two_seconds(
    kernel: tuple[AsyncKernelManager, Session],
) -> None:
    manager, session = kernel
    await session.run("1")
    vm = vm_of(manager)
    os.kill(pid_of(manager), signal.SIGKILL)
    await eventually(lambda: ended(vm), 60.0, "the VM has gone")


async def test_sigterm_ends_the_process(kernel: tuple[AsyncKernelManager, Session]) -> None:
    manager, _ = kernel
    os.kill(pid_of(manager), signal.SIGTERM)
    await has_ended(manager)


def test_the_kernel_ends_with_the_jupyter_process_that_started_it(kernelspec: str, tmp_path: Path) -> None:
    starter = (
        "import subprocess, sys, os, time\n"
        "env = os.environ | {'JPY_PARENT_PID': str(os.getpid())}\n"
        "print(subprocess.Popen(sys.argv[1:], env=env, stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    kernel = [sys.executable, "-m", "vm_kernel", "-f", str(tmp_path / "kernel-own.json")]
    with subprocess.Popen([sys.executable, "-c", starter, *kernel], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until((tmp_path / "kernel-own.json").exists, 60.0, "the connection file of the kernel's own making")
        time.sleep(0.3)
        assert not ended(pid)
        parent.kill()
    wait_until(lambda: ended(pid), 60.0, "the kernel has ended")
    assert not (tmp_path / "kernel-own.json").exists()


@pytest.mark.parametrize("arguments", [[], ["-f"], ["-f", "x", "--nosuch"], ["--help"]])
def test_a_wrong_command_line_gets_a_usage_message(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "vm_kernel", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m vm_kernel -f CONNECTION_FILE")


@pytest.mark.parametrize(
    "fields",
    ["no JSON", "[]", {"transport": "smoke"}, {"shell_port": "1"}, {"shell_port": 70000}, {"key": 5},
     {"signature_scheme": "hmac-nosuch"}, {"curve_publickey": "x"}, {"curve_publickey": "x", "curve_secretkey": "y"},
     {"ip": "192.0.2.1"}],
)  # fmt: skip
def test_a_broken_connection_file_is_a_clear_error(tmp_path: Path, fields: Any) -> None:
    path = tmp_path / "kernel-1.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps({"key": "k", **fields}))
    command = [sys.executable, "-m", "vm_kernel", "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("vm-kernel: ")
    assert "Traceback" not in done.stderr
