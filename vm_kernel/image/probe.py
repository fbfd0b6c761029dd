"""Runs in a chroot of the guest while an image is built: does what a notebook needs work there?

Prints JSON: the content of ipykernel's kernel_info_reply, Python's version, and that of each package. Imports nothing
of ours. It also leaves in the home folder what would take a guest seconds to make: matplotlib's font cache, and what
jedi has parsed for a first completion (a golden snapshot without KVM took 126 s; with it, on the same machine, 76 s).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import pickle
import platform
import re
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

#: what the guest agent asks in the template, see its ``Kernel.warm_up``
COMPLETED = "import os; os.pat"


def kernel_info(folder: str) -> dict[str, Any]:
    """Start ipykernel as Jupyter would, and ask it. Completes something, too."""
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
        if not client.complete(COMPLETED, len(COMPLETED), reply=True, timeout=120)["content"]["matches"]:
            raise SystemExit(f"ipykernel does not complete {COMPLETED!r}")
        return content
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def remove_dates(cache: Path) -> None:
    """From what parso, jedi's parser, has pickled: equal images are equal, and all their files are of one date."""
    parsed = list(cache.glob("*/*.pkl"))
    if not parsed:
        raise SystemExit(f"jedi has left nothing in {cache}")
    for path in parsed:
        module = pickle.loads(path.read_bytes())
        module.change_time = module.last_used = 0.0
        path.write_bytes(pickle.dumps(module))


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
    remove_dates(Path.home() / ".cache" / "jedi")
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
