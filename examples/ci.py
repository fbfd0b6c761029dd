#!/usr/bin/env python3
"""Run a notebook from a continuous integration job, in a virtual machine that nobody has touched.

    python examples/ci.py NOTEBOOK [--kernel NAME] [--timeout SECONDS]

Plain nbclient: that the kernel is a VM needs no code. The exit status is 0 if every cell ran, 1 if one failed (its
error goes to stderr), so a job fails when the notebook does. `vm-kernel run` does the same with a progress bar.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError


def main() -> int:
    """Execute the notebook that the command line names."""
    parser = argparse.ArgumentParser(description="Run a notebook in a throw-away VM.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--kernel", default="vm-sandbox")
    parser.add_argument("--timeout", type=int, default=120, help="seconds for a cell (default: %(default)s)")
    args = parser.parse_args()

    notebook = nbformat.reads(args.notebook.read_text(), as_version=4)
    try:
        NotebookClient(notebook, kernel_name=args.kernel, timeout=args.timeout).execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        print(f"{args.notebook}: {error}", file=sys.stderr)
        return 1
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"{args.notebook}: {cells} cells ran in kernel {args.kernel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
