"""Runs in a chroot of the guest while an image is built: does what a notebook needs work there?

Prints JSON: the content of ipykernel's kernel_info_reply, Python's version, and that of each package. Imports nothing
of ours. It also leaves matplotlib's font cache in the home folder, which would take a guest seconds to make.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import re
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any


def kernel_info(folder: str) -> dict[str, Any]:
    """Start ipykernel as Jupyter would, and ask it."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(transport="ipc", ip=f"{folder}/k", connection_file=f"{folder}/kernel.json")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        content: dict[str, Any] = client.kernel_info(reply=True, timeout=60)["content"]
        # IPython's tip is another one each time
        content["banner"] = re.sub(r"^Tip: .*\n", "", content["banner"], flags=re.MULTILINE)
        return content
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def main() -> None:
    """Import, plot, ask; anything that fails ends the build."""
    import_module("matplotlib").use("agg")
    with tempfile.TemporaryDirectory() as folder:
        figure, axes = import_module("matplotlib.pyplot").subplots()
        import_module("pandas").DataFrame({"x": [1, 2, 3]}).plot(ax=axes)
        figure.savefig(f"{folder}/plot.png")
        import_module("ipywidgets").IntSlider()
        with contextlib.redirect_stdout(sys.stderr):
            info = kernel_info(folder)
    for unwanted in (".ipython", ".jupyter", ".local"):
        shutil.rmtree(Path.home() / unwanted, ignore_errors=True)
    packages = {each.metadata["Name"]: each.version for each in importlib.metadata.distributions()}
    facts = {
        "kernel_info": info,
        "debian_version": Path("/etc/debian_version").read_text().strip(),
        "python_version": platform.python_version(),
        "python_packages": packages,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
