#!/usr/bin/env python3
"""Load the data once, then go on in several ways at once, each in a VM that begins from that very state.

    python examples/forks.py

What took long, loading and preparing, is paid once. A way that fails, or spoils its data, spoils it for nobody else.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from vm_kernel import Sandbox

DATA = Path(__file__).with_name("data") / "mauna_loa_co2.csv"
PREPARE = """
import numpy as np
import pandas as pd
yearly = pd.read_csv("co2.csv", index_col="year").mean(axis=1)
years, ppm = yearly.index[:-5].to_numpy(), yearly.iloc[:-5].to_numpy()
later, truth = yearly.index[-5:].to_numpy(), yearly.iloc[-5:].to_numpy()
"""
WAYS = {
    "line": "guess = np.polyval(np.polyfit(years - 1990, ppm, 1), later - 1990)",
    "parabola": "guess = np.polyval(np.polyfit(years - 1990, ppm, 2), later - 1990)",
    "last ten years": "guess = np.polyval(np.polyfit(years[-10:] - 1990, ppm[-10:], 1), later - 1990)",
    "careless": "del ppm; guess = ppm",
}
SCORE = "print(f'{np.abs(guess - truth).mean():.2f}')"


async def attempt(box: Sandbox, way: str) -> str:
    """The mean error of one way, in ppm; or why there is none."""
    async with box:
        result = await box.execute(f"{way}\n{SCORE}", timeout=30)
    return result.stdout.strip() if result.error is None else f"failed: {result.error.name}"


async def main() -> None:
    """Prepare once, try all ways."""
    async with Sandbox() as box:
        await box.files.write_file("co2.csv", DATA)
        prepared = await box.execute(PREPARE, timeout=60)
        assert prepared.ok, prepared.error
        children = await box.fork(len(WAYS))
        scores = await asyncio.gather(*map(attempt, children, WAYS.values()))
    for name, score in zip(WAYS, scores, strict=True):
        print(f"{name:15} {score}")


if __name__ == "__main__":
    asyncio.run(main())
