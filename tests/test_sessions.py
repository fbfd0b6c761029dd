"""The promises of isolation: no state goes from one session to the next, or to the one beside it."""

from __future__ import annotations

from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient

from tests.conftest import StartKernel


async def run(client: AsyncKernelClient, code: str) -> str:
    """Run a cell; its standard output and result, or the error's name."""
    text: list[str] = []

    def on_output(message: dict[str, object]) -> None:
        content = message["content"]
        assert isinstance(content, dict)
        if message["msg_type"] == "stream" and content["name"] == "stdout":
            text.append(content["text"])
        elif message["msg_type"] == "execute_result":
            text.append(content["data"]["text/plain"])

    reply = await client.execute_interactive(code, output_hook=on_output, timeout=60)
    if reply["content"]["status"] != "ok":
        return str(reply["content"]["ename"])
    return "".join(text)


async def test_a_restart_gives_the_golden_snapshot_back(start_kernel: StartKernel) -> None:
    async with start_kernel() as (manager, client):
        await run(client, "x = 1; open('/home/sandbox/file', 'w').write('x')")
        assert await run(client, "x") == "1"
        first = await run(client, "open('/etc/machine-id').read()")
        await manager.restart_kernel()
        await client.wait_for_ready(timeout=60)
        assert await run(client, "x") == "NameError"
        assert await run(client, "open('/home/sandbox/file')") == "FileNotFoundError"
        assert await run(client, "open('/etc/machine-id').read()") != first
        assert await run(client, "1 + 1") == "2"


async def test_a_file_of_one_session_is_not_in_the_next(start_kernel: StartKernel) -> None:
    async with start_kernel() as (_, client):
        assert await run(client, "!echo secret > /tmp/left; cat /tmp/left") == "secret\r\n"
    async with start_kernel() as (_, client):
        assert await run(client, "import os; os.path.exists('/tmp/left')") == "False"


async def test_two_kernels_at_once_do_not_see_each_other(start_kernel: StartKernel) -> None:
    async with start_kernel() as (_, first), start_kernel() as (_, second):
        await run(first, "mine = 'first'; open('/tmp/whose', 'w').write(mine)")
        await run(second, "mine = 'second'")
        assert await run(first, "mine") == "'first'"
        assert await run(second, "mine") == "'second'"
        assert await run(second, "open('/tmp/whose')") == "FileNotFoundError"
        assert await run(first, "import socket; socket.gethostname()") != await run(
            second, "import socket; socket.gethostname()"
        )


async def test_the_guest_has_no_network_and_none_of_the_hosts_files(start_kernel: StartKernel) -> None:
    async with start_kernel() as (_, client):
        assert await run(client, "import os; sorted(os.listdir('/sys/class/net'))") == "['lo']"
        assert await run(client, f"os.path.exists({__file__!r})") == "False"
        assert await run(client, "os.getuid()") == "1000"


async def test_memory_that_runs_out_ends_the_guests_kernel_and_says_so(start_kernel: StartKernel) -> None:
    async with start_kernel() as (_, client):
        errors: list[str] = []

        def on_output(message: dict[str, Any]) -> None:
            if message["msg_type"] == "error":
                errors.append(message["content"]["evalue"])

        code = "hoard = []\nwhile True: hoard.append(bytearray(b'x' * 2**24))"
        reply = await client.execute_interactive(code, output_hook=on_output, timeout=60)
        assert reply["content"]["ename"] in ("VMDied", "MemoryError")
        assert any("SIGKILL" in error or "memory" in error for error in errors), errors
