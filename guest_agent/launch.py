"""Starts an ordinary ipykernel. Run as a script; the only addition is the module that ``renew.py`` describes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def main() -> None:
    """Take the agent's folder off the import path, put renew.py into the process, become ipykernel."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    spec = importlib.util.spec_from_file_location("_vm_kernel_renew", here / "renew.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{here / 'renew.py'} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module

    from ipykernel import kernelapp

    kernelapp.launch_new_instance()


if __name__ == "__main__":
    main()
