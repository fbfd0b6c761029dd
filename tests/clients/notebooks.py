"""Notebooks for the clients of this folder, and the programs that execute them."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from vm_kernel.kernel.spec import KERNEL_NAME

TIMEOUT_S = 150.0
#: prints what no two sessions share, and what differs from the host's
WHO = "import socket; print(socket.gethostname())"


def notebook(*cells: str | NotebookNode, kernel: str = KERNEL_NAME) -> NotebookNode:
    """A notebook that was saved with that kernel. A string is the code of a cell."""
    new = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    )
    new.metadata["kernelspec"] = {"name": kernel, "display_name": "of the notebook", "language": "python"}
    return new


def write(path: Path, *cells: str | NotebookNode, kernel: str = KERNEL_NAME) -> Path:
    """The same as a file."""
    path.write_text(nbformat.writes(notebook(*cells, kernel=kernel)))
    return path


def read(path: Path) -> NotebookNode:
    """An executed notebook."""
    found: NotebookNode = nbformat.reads(path.read_text(), as_version=4)
    nbformat.validate(found)
    return found


def outputs(executed: NotebookNode) -> list[str]:
    """What each code cell has put out, as text, without stderr: there a cell is told if it waits for its VM."""
    return ["".join(map(_text, cell.outputs)) for cell in executed.cells if cell.cell_type == "code"]


def counts(executed: NotebookNode) -> list[int | None]:
    """The execution counts of the code cells."""
    return [cell.execution_count for cell in executed.cells if cell.cell_type == "code"]


def plain(text: object) -> str:
    """Text of a terminal without its colours and cursor movements."""
    return re.sub(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>])", "", str(text))


def program(name: str) -> str:
    """Path of a program that is installed beside this interpreter."""
    return str(Path(sysconfig.get_path("scripts"), name))


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Such a program, run to its end; what it says is without colours."""
    command = [program(name), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    done.stdout, done.stderr = plain(done.stdout), plain(done.stderr)
    return done


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text) if output.name == "stdout" else ""
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    return str(output.data["text/plain"])
