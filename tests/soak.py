"""Many sessions, several at a time, with random kills: nothing may be left, and the service's memory stays flat.

``tests/test_soak.py`` runs a short one; ``make soak`` (``python -m tests.soak``) the whole, with a plot of the memory.
What a session does is drawn by chance, from a seed that is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from jupyter_client.manager import AsyncKernelManager

from tests.conftest import ended, eventually, qemu_of
from tests.pool import rest
from vm_kernel import Sandbox
from vm_kernel.errors import VMDied
from vm_kernel.pool.client import PoolConnection

#: growth of the service's own memory, in MiB, that is called flat: what its threads' allocators may keep
FLAT_MIB = 5.0
_HOLD = "import time; from vm_kernel.pool.client import PoolConnection as C; c = C.open(); c.acquire(); print(1)"


class Sample(NamedTuple):
    """The service after so many sessions: memory of its own (RssAnon) in MiB, and open descriptors."""

    sessions: int
    memory_mib: float
    descriptors: int


class Soak:
    """``sessions`` of them, ``at_once`` at a time, against the running pool service of ``home``."""

    def __init__(self, home: Path, sessions: int, at_once: int, seed: int) -> None:
        self.home = home
        self.samples: list[Sample] = []
        self.done: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._todo = sessions
        self._at_once = at_once
        self._mark = f"mark-{seed}"
        #: whoever takes a VM, or hits one that is warm, has it: a VM that has just been taken is not to be hit
        self._door = asyncio.Lock()

    async def run(self) -> None:
        """All of them. Raises AssertionError if a session is not as it should be."""
        self._sample()
        await asyncio.gather(*(self._work() for _ in range(self._at_once)))

    def growth_mib(self) -> float:
        """By how much the service's memory has grown from the second quarter to the last: first it fills its caches."""
        quarter = max(1, len(self.samples) // 4)
        before, after = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        return statistics.median(s.memory_mib for s in after) - statistics.median(s.memory_mib for s in before)

    async def _work(self) -> None:
        while self._todo > 0:
            self._todo -= 1
            act = self._random.choice(_ACTS)
            await asyncio.wait_for(act(self), 180)
            self.done[act.__name__.lstrip("_")] += 1
            self._sample()

    def _sample(self) -> None:
        pid = rest.status()["pid"]
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        self.samples.append(Sample(sum(self.done.values()), int(fields["RssAnon"].split()[0]) / 1024, descriptors))

    @asynccontextmanager
    async def _box(self) -> AsyncIterator[Sandbox]:
        async with self._door:
            box = Sandbox()
            await box.start()
        async with box:
            yield box

    # ---- what a session may do

    async def _cells(self) -> None:
        async with self._box() as box:
            new = await box.execute(f"import pathlib; p = pathlib.Path('{self._mark}'); print(p.exists()); p.touch()")
            assert new.stdout == "False\n", "something of another session is there"
            total = 0
            for number in range(self._random.randint(1, 5)):
                total += number
                assert (await box.execute(f"x = globals().get('x', 0) + {number}; print(x)")).stdout == f"{total}\n"

    async def _much_output(self) -> None:
        async with self._box() as box:
            assert len((await box.execute("print('x' * 3_000_000)")).stdout) == 3_000_001

    async def _checkpoints(self) -> None:
        async with self._box() as box:
            await box.execute("x = bytearray(b'a') * (4 << 20)")
            await box.snapshots.create("a")
            await box.execute("x[0] = 0")
            await box.snapshots.restore("a")
            assert (await box.execute("print(x[0])")).stdout == "97\n"

    async def _forks(self) -> None:
        async with self._box() as box:
            await box.execute("x = 1")
            for child in await box.fork(2):
                assert (await child.execute("print(x)")).stdout == "1\n"
                await child.close()

    async def _files(self) -> None:
        data = self._random.randbytes(300_000)
        async with self._box() as box:
            await box.files.write_file("data.bin", data)
            assert await box.files.read_file("data.bin") == data

    async def _error_and_timeout(self) -> None:
        async with self._box() as box:
            assert (await box.execute("1 / 0")).status == "error"
            assert (await box.execute("while True: pass", timeout=0.5)).status == "timeout"
            assert (await box.execute("print(2)")).stdout == "2\n"

    async def _python_ends(self) -> None:
        code = self._random.choice(("import os; os._exit(1)", "import ctypes; ctypes.string_at(0)"))
        await self._dies(lambda box: box.execute(code))

    async def _memory_runs_out(self) -> None:
        await self._dies(lambda box: box.execute("x = [bytearray(b'a') * (8 << 20) for _ in range(100)]"))

    async def _qemu_is_killed(self) -> None:
        async def kill(box: Sandbox) -> None:
            running = asyncio.ensure_future(box.execute("import time; time.sleep(60)"))
            await asyncio.sleep(self._random.random())
            assert box.vm is not None
            os.kill(qemu_of(self.home, box.vm.name), signal.SIGKILL)
            await running

        await self._dies(kill)

    async def _dies(self, act: Callable[[Sandbox], Awaitable[object]]) -> None:
        async with self._box() as box:
            with suppress(VMDied):
                await act(box)
                raise AssertionError("the VM lives on")

    async def _client_is_killed(self) -> None:
        async with self._door:
            client = await asyncio.create_subprocess_exec(
                sys.executable, "-u", "-c", f"{_HOLD}; time.sleep(100)", stdout=subprocess.PIPE
            )
            assert client.stdout is not None
            await client.stdout.readline()
        client.kill()
        await client.wait()

    async def _client_vanishes(self) -> None:
        async with self._door:
            connection = PoolConnection.open()
            connection._sock.sendall(b'{"op": "acquire"}\n')
            await asyncio.sleep(self._random.random() / 10)
            connection.close()

    async def _warm_vm_is_hit(self) -> None:
        number = self._random.choice((signal.SIGKILL, signal.SIGSTOP))
        async with self._door:
            for pid in list(rest.vms("warm").values())[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                # until that has taken effect nobody can know, and the next session could get this very VM
                await eventually(lambda pid=pid: _is_down(pid), 60.0, "the signal has taken effect")

    async def _notebook(self) -> None:
        manager = AsyncKernelManager(kernel_name="vm-sandbox")
        try:
            async with self._door:
                await manager.start_kernel()
                await self._first_cell(manager)
            if self._random.random() < 0.5:
                await manager.signal_kernel(signal.SIGKILL)
        finally:
            await manager.shutdown_kernel(now=True)

    async def _first_cell(self, manager: AsyncKernelManager) -> None:
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=120)
            reply = await client.execute_interactive("6 * 7", timeout=120, output_hook=lambda _: None)
            assert reply["content"]["status"] == "ok"
        finally:
            client.stop_channels()


def _is_down(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return ended(pid) or psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return True


_ACTS = [
    Soak._cells,
    Soak._cells,
    Soak._much_output,
    Soak._checkpoints,
    Soak._forks,
    Soak._files,
    Soak._error_and_timeout,
    Soak._python_ends,
    Soak._memory_runs_out,
    Soak._qemu_is_killed,
    Soak._client_is_killed,
    Soak._client_vanishes,
    Soak._warm_vm_is_hit,
    Soak._notebook,
]


def plot(samples: list[Sample], target: Path) -> None:
    """Memory and descriptors of the service over the sessions, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    memory, descriptors = figure.subplots(2, 1, sharex=True)
    memory.plot([s.sessions for s in samples], [s.memory_mib for s in samples])
    memory.set(ylabel="memory of its own, MiB", ylim=(0, None), title="The pool service during a soak")
    descriptors.plot([s.sessions for s in samples], [s.descriptors for s in samples], color="tab:orange")
    descriptors.set(ylabel="descriptors", ylim=(0, None), xlabel="sessions")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target)


def main() -> int:
    """``make soak``. The exit status is 1 if something was left or the memory has grown."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--plot", type=Path, default=Path("build/soak.png"))
    options = parser.parse_args()
    from benchmarks.environment import place

    print(f"seed {options.seed}", flush=True)
    with place() as home:
        try:
            return _soak(home, options)
        finally:
            options.plot.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(home / "log" / "pool.log", options.plot.with_suffix(".log"))


def _soak(home: Path, options: argparse.Namespace) -> int:
    before, began = rest.used_and_at_rest(home), time.monotonic()
    soak = Soak(home, options.sessions, options.at_once, options.seed)
    try:
        asyncio.run(soak.run())
    finally:
        plot(soak.samples, options.plot)
    minutes = (time.monotonic() - began) / 60
    rest.assert_clean(home, before)
    memory = [f"{sample.memory_mib:.1f}" for sample in (soak.samples[0], soak.samples[-1])]
    print(f"{options.sessions} sessions in {minutes:.1f} min: {dict(soak.done)}")
    print(f"memory {' to '.join(memory)} MiB, grown by {soak.growth_mib():.1f} MiB; nothing is left")
    return int(soak.growth_mib() > FLAT_MIB)


if __name__ == "__main__":
    sys.exit(main())
