#!/usr/bin/env python3
"""Try programs that nobody has read: each in a virtual machine of its own, all at once, with a limit on their time.

    python examples/agent.py

An AI agent that writes code needs just this: run a candidate, look at what it printed or why it failed, try again.
Nothing that a candidate does reaches this machine or another candidate.
"""

from __future__ import annotations

import asyncio

from vm_kernel import ExecutionResult, Sandbox

CANDIDATES = {
    "good": "print(sum(n * n for n in range(101)))",
    "wrong": "print(sum(n * n for n in range(100)))",
    "broken": "print(sum(n ** 2 for n in range(101))",
    "endless": "while True:\n    pass",
    "hostile": "import shutil\nshutil.rmtree('/home/sandbox', ignore_errors=True)\nprint('all is gone')",
}
EXPECTED = "338350\n"
TIMEOUT_S = 15


async def attempt(code: str) -> ExecutionResult:
    """Run one candidate in a VM that exists for nothing else."""
    async with Sandbox() as box:
        return await box.execute(code, timeout=TIMEOUT_S)


def verdict(result: ExecutionResult) -> str:
    """What an agent would be told."""
    if result.status == "timeout":
        return f"did not end within {TIMEOUT_S} s"
    if result.error is not None:
        return f"{result.error.name}: {result.error.message}"
    return "right" if result.stdout == EXPECTED else f"wrong: {result.stdout.strip()}"


async def main() -> None:
    """Try all candidates."""
    results = await asyncio.gather(*(attempt(code) for code in CANDIDATES.values()))
    for name, result in zip(CANDIDATES, results, strict=True):
        print(f"{name:8} {result.duration_s:6.2f} s  {verdict(result)}")


if __name__ == "__main__":
    asyncio.run(main())
