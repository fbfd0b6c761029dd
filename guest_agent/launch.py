"""Starts an ordinary ipykernel. Run as a script; the only additions are the modules in ADDED, see there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

#: files beside this one that are put into the process, as ``_vm_kernel_NAME``, for the agent to call
ADDED = ("renew", "interruptible", "offline_pip", "flow")


def main() -> None:
    """Take the agent's folder off the import path, put our modules into the process, become ipykernel."""
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    for name in ADDED:
        spec = importlib.util.spec_from_file_location(f"_vm_kernel_{name}", here / f"{name}.py")
        if spec is None or spec.loader is None:
            raise SystemExit(f"{here / name}.py cannot be loaded")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)

    sys.modules["_vm_kernel_flow"].install()
    from ipykernel import kernelapp

    kernelapp.launch_new_instance()


if __name__ == "__main__":
    main()
