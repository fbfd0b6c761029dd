"""Runs the command ``vm-kernel`` as a user does: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 150.0


def vm_kernel(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished process; ``environment`` is added to the test's own."""
    command = [sys.executable, "-m", "vm_kernel.cli", *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook with these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path.write_text(nbformat.writes(notebook))
    return path


def outputs(path: Path) -> list[str]:
    """The text that each code cell of an executed notebook has put out."""
    notebook = json.loads(path.read_text())
    return [_text(cell["outputs"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _text(cell_outputs: list[dict[str, Any]]) -> str:
    found = []
    for output in cell_outputs:
        text = output.get("text") or output.get("data", {}).get("text/plain") or output.get("evalue", "")
        found.append(text if isinstance(text, str) else "".join(text))
    return "".join(found)
