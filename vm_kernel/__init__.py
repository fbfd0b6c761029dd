"""VM Sandbox: a Jupyter kernel whose cells run inside a throw-away virtual machine.

This module imports nothing heavy: the kernel process is started for every notebook and must be quick.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "load_ipython_extension"]


def load_ipython_extension(shell: Any) -> None:
    """Register the host magics in an IPython session. IPython calls this for ``%load_ext vm_kernel``."""
    from vm_kernel.kernel.magics import register

    register(shell)
