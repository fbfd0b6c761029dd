"""``SyncSandbox``: the sandbox of programs without asyncio."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.conftest import qemu_of, wait_until
from vm_kernel import SyncSandbox
from vm_kernel.errors import SandboxClosed, UnknownProfile
from vm_kernel.sandbox import Output, StreamOutput


def test_a_script_runs_code_and_restarts(vm_home: Path) -> None:
    seen: list[Output] = []
    with SyncSandbox(name="a-script") as box:
        assert box.vm is not None
        first = box.vm.name
        result = box.execute("x = 1\nprint('hello')", timeout=60, on_output=seen.append)
        assert (result.ok, result.stdout, seen) == (True, "hello\n", [StreamOutput("stdout", "hello\n")])
        box.restart()
        assert box.vm.name != first
        assert box.execute("x").error is not None
    with pytest.raises(SandboxClosed, match="closed"):
        box.execute("1")
    box.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sandbox"]


def test_another_thread_interrupts(vm_home: Path) -> None:
    begun = threading.Event()
    with SyncSandbox() as box:
        threading.Thread(target=lambda: begun.wait(60) and box.interrupt()).start()
        code = "print('begun', flush=True)\nimport time; time.sleep(100)"
        result = box.execute(code, timeout=90, on_output=lambda _: begun.set())
    assert result.status == "error"
    assert result.error is not None
    assert result.error.name == "KeyboardInterrupt"


def test_a_callback_that_would_wait_for_itself_is_an_error(vm_home: Path) -> None:
    errors: list[RuntimeError] = []

    def on_output(output: Output) -> None:
        try:
            box.execute("1")
        except RuntimeError as error:
            errors.append(error)

    with SyncSandbox() as box:
        assert box.execute("print(1)", on_output=on_output).ok
    assert "its own on_output" in str(errors[0])


def test_a_failed_start_leaves_no_thread(vm_home: Path) -> None:
    with pytest.raises(UnknownProfile):
        SyncSandbox("huge").start()
    assert not [thread for thread in threading.enumerate() if thread.name == "sandbox"]


def test_ctrl_c_ends_the_script_and_its_vm(vm_home: Path) -> None:
    script = (
        "import signal\n"
        "from vm_kernel import SyncSandbox\n"
        # what a shell starts in the background ignores it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with SyncSandbox() as box:\n"
        "    print(box.vm.name, flush=True)\n"
        "    box.execute('import time; time.sleep(100)')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert name.startswith("vm-")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr
    assert process.returncode == -signal.SIGINT
    wait_until(lambda: not qemu_of(vm_home, name), 60.0, "its QEMU ends")


def test_snapshots_and_forks_without_async(warm_pool: None) -> None:
    with SyncSandbox(name="parent") as box:
        box.execute("x = 1")
        assert box.snapshots.create("one").name == "one"
        box.execute("x = 2")
        children = box.fork(2)
        try:
            for number, child in enumerate(children):
                child.execute(f"x += {number}")
            assert [child.execute("print(x)").stdout for child in children] == ["2\n", "3\n"]
        finally:
            for child in children:
                child.close()
        box.snapshots.restore("one")
        assert box.execute("print(x)").stdout == "1\n"
        assert [snapshot.name for snapshot in box.snapshots.list()] == ["one"]
        box.snapshots.delete("one")
        assert box.snapshots.list() == []
