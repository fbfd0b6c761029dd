"""``Sandbox`` as a script or an agent uses it, on real VMs of the tests' pool."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import eventually, qemu_of
from vm_kernel import ExecutionResult, Sandbox
from vm_kernel.errors import SandboxClosed, UnknownProfile, VMDied
from vm_kernel.pool.client import PoolConnection
from vm_kernel.sandbox import ErrorOutput, Output, RichOutput, StreamOutput


async def test_code_prints_displays_and_has_a_value(vm_home: Path) -> None:
    async with Sandbox() as box:
        result = await box.execute(
            "import sys\nprint('out'); print('err', file=sys.stderr)\n"
            "from IPython.display import display, HTML\ndisplay(HTML('<b>x</b>'))\n6 * 7"
        )
        assert (result.status, result.ok, result.stdout, result.stderr) == ("ok", True, "out\n", "err\n")
        assert [output.data.get("text/html") for output in result.outputs] == ["<b>x</b>", None]
        assert result.result is not None
        assert result.result.text == "42"
        assert (result.execution_count, result.error, result.truncated, result.killed) == (1, None, False, False)
        assert 0 < result.duration_s < 60
        # state stays, and numbers go on
        again = await box.execute("sys.version_info[0]")
        assert (again.result and again.result.text, again.execution_count) == ("3", 2)


async def test_an_exception_is_in_the_result(vm_home: Path) -> None:
    async with Sandbox() as box:
        result = await box.execute("print('before')\n1 / 0")
        assert (result.status, result.stdout) == ("error", "before\n")
        assert isinstance(result.error, ErrorOutput)
        assert (result.error.name, result.error.message) == ("ZeroDivisionError", "division by zero")
        assert "ZeroDivisionError" in "".join(result.error.traceback)
        assert (await box.execute("1")).ok


async def test_output_comes_as_it_is_made(vm_home: Path) -> None:
    seen: list[Output] = []
    first = asyncio.Event()

    def on_output(output: Output) -> None:
        seen.append(output)
        first.set()

    async with Sandbox() as box:
        code = "import time\nprint('one', flush=True)\ntime.sleep(1)\nprint('two', flush=True)\n'three'"
        running = asyncio.ensure_future(box.execute(code, on_output=on_output))
        await asyncio.wait_for(first.wait(), 60)
        assert not running.done()
        assert seen == [StreamOutput("stdout", "one\n")]
        await running
        assert "".join(output.text for output in seen if isinstance(output, StreamOutput)) == "one\ntwo\n"
        assert isinstance(seen[-1], RichOutput)
        assert seen[-1].is_result


async def test_displays_are_updated_and_cleared_as_in_a_notebook(vm_home: Path) -> None:
    async with Sandbox() as box:
        result = await box.execute(
            "from IPython.display import clear_output\n"
            "print('gone'); display('gone too'); clear_output()\n"
            "handle = display('old', display_id=True); display('other'); handle.update('new')"
        )
        assert (result.stdout, [output.text for output in result.outputs]) == ("", ["'new'", "'other'"])


async def test_a_timeout_interrupts_and_the_state_stays(vm_home: Path) -> None:
    async with Sandbox() as box:
        await box.execute("x = 1")
        result = await box.execute("x = 2\nprint('begun', flush=True)\nimport time; time.sleep(100)", timeout=6)
        assert (result.status, result.stdout, result.killed) == ("timeout", "begun\n", False)
        assert result.error is not None
        assert result.error.name == "KeyboardInterrupt"
        again = await box.execute("x")
        assert again.result is not None
        assert again.result.text == "2"


async def test_code_that_does_not_stop_loses_its_vm(vm_home: Path) -> None:
    stubborn = (
        "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun', flush=True)\ntime.sleep(99)"
    )
    async with Sandbox() as box:
        assert box.vm is not None
        name = box.vm.name
        result = await box.execute(stubborn, timeout=5)
        assert (result.status, result.stdout, result.killed) == ("timeout", "begun\n", True)
        assert box.vm is None
        with pytest.raises(VMDied, match=r"did not stop[\s\S]*restart"):
            await box.execute("1")
        await eventually(lambda: not qemu_of(vm_home, name), 60.0, "its QEMU ends")
        await box.restart()
        assert (await box.execute("1")).ok


async def test_the_end_of_the_vm_is_an_error_with_its_cause(vm_home: Path) -> None:
    async with Sandbox() as box:
        with pytest.raises(VMDied, match="Python"):
            await box.execute("import os; os._exit(3)")
        await box.restart()
        assert box.vm is not None
        running = asyncio.ensure_future(box.execute("print('begun', flush=True)\nimport time; time.sleep(100)"))
        await asyncio.sleep(0.5)
        os.kill(qemu_of(vm_home, box.vm.name), signal.SIGKILL)
        with pytest.raises(VMDied, match="virtual machine"):
            await asyncio.wait_for(running, 20)
        with pytest.raises(VMDied):
            await box.execute("1")


async def test_a_cancelled_execution_is_interrupted_and_the_next_one_runs(vm_home: Path) -> None:
    async with Sandbox() as box:
        begun = asyncio.Event()
        running = asyncio.ensure_future(
            box.execute("print('begun', flush=True)\nimport time; time.sleep(100)", on_output=lambda _: begun.set())
        )
        await asyncio.wait_for(begun.wait(), 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        result = await asyncio.wait_for(box.execute("'next'"), 60)
        assert result.result is not None
        assert result.result.text == "'next'"


async def test_output_beyond_the_limit_is_cut_and_said(vm_home: Path) -> None:
    async with Sandbox(max_output_bytes=100_000) as box:
        result = await box.execute("for _ in range(100):\n    print('x' * 10_000, flush=True)\n'end'", timeout=100)
        assert (result.status, result.truncated) == ("ok", True)
        assert len(result.stdout) <= 100_000


async def test_many_at_once_each_have_a_vm_of_their_own(vm_home: Path) -> None:
    async def one(number: int) -> tuple[str, ExecutionResult]:
        async with Sandbox() as box:
            assert box.vm is not None
            await box.execute(f"mine = {number}\nopen('/tmp/mine', 'w').write(str(mine))")
            return box.vm.name, await box.execute("print(mine, open('/tmp/mine').read())")

    found = await asyncio.gather(*(one(number) for number in range(5)))
    assert len({name for name, _ in found}) == 5
    assert [result.stdout for _, result in found] == [f"{n} {n}\n" for n in range(5)]


async def test_executions_of_one_sandbox_take_turns(vm_home: Path) -> None:
    async with Sandbox() as box:
        results = await asyncio.gather(*(box.execute(f"print({n})") for n in range(4)))
        assert [(r.stdout, r.execution_count) for r in results] == [(f"{n}\n", n + 1) for n in range(4)]


async def test_the_vm_has_gone_after_the_block(vm_home: Path) -> None:
    async with Sandbox(name="of-this-test") as box:
        assert box.vm is not None
        name = box.vm.name
        assert qemu_of(vm_home, name)
    await eventually(lambda: not qemu_of(vm_home, name), 60.0, "its QEMU ends")
    with pytest.raises(SandboxClosed, match="closed"):
        await box.execute("1")


async def test_what_cannot_be_had_is_a_clear_error(vm_home: Path) -> None:
    with pytest.raises(UnknownProfile, match="no profile 'huge'"):
        await Sandbox("huge").start()
    with pytest.raises(SandboxClosed, match="not been started"):
        await Sandbox().execute("1")
    async with Sandbox() as box:
        for timeout in (0, -1, float("nan")):
            with pytest.raises(ValueError, match="a timeout of"):
                await box.execute("1", timeout=timeout)


async def test_who_is_cancelled_while_it_waits_for_a_vm_holds_none(vm_home: Path) -> None:
    boxes = [Sandbox("small") for _ in range(2)]  # as many as the profile has
    await asyncio.gather(*(box.start() for box in boxes))
    waiting = asyncio.Event()
    third = asyncio.ensure_future(Sandbox("small", on_waiting=lambda _: waiting.set()).start())
    await asyncio.wait_for(waiting.wait(), 60)
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    await asyncio.gather(*(box.close() for box in boxes))

    def leased() -> int:
        connection = PoolConnection.open()
        try:
            (small,) = [p for p in connection.status()["profiles"] if p["name"] == "small"]
            return int(small["leased"]) + int(small["waiting"])
        finally:
            connection.close()

    deadline = time.monotonic() + 30
    while await asyncio.to_thread(leased):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
