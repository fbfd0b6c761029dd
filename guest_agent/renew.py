"""The part of warming up and of making a clone unique that has to happen inside the kernel's own process.

``launch.py`` puts this module into the kernel under the name ``_vm_kernel_renew``; the agent calls it by a silent
execute request. Nothing here touches the user's namespace.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

#: what most notebooks import: the default of ``PoolConfig.preload``. An image without one of them goes without
USUAL = ("numpy", "pandas", "matplotlib.pyplot")
_ALWAYS = ("ipywidgets", "ctypes", "pexpect")


def preload(names: Sequence[str]) -> None:
    """Import modules before the snapshot, so that a session has them at once; draw one figure that nobody sees.

    The agent calls it in the template. Raises what an import raises, but nothing for a usual one that is not there.
    """
    for name in (*names, *_ALWAYS):
        with contextlib.suppress(ImportError) if name in USUAL + _ALWAYS else contextlib.nullcontext():
            importlib.import_module(name)
    if "matplotlib.pyplot" in sys.modules:
        with contextlib.suppress(ImportError):
            importlib.import_module("matplotlib_inline.backend_inline")
        _draw_unseen()
    if "pandas" in sys.modules:
        sys.modules["pandas"].DataFrame({"a": [1.5], "b": ["x"]})._repr_html_()
    importlib.import_module("_vm_kernel_offline_pip").install(importlib.import_module("IPython").get_ipython())
    gc.collect()
    # what is loaded now stays loaded: collections in the clones pass over it, are quicker and dirty fewer pages
    gc.freeze()


def _draw_unseen() -> None:
    """Fill matplotlib's font and glyph caches without pyplot, which would count a figure."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title="warm", xlabel="x", ylabel="y")
    axes.plot([0.0, 1.0], [0.0, 1.0], label="z")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")


def renew(session: str) -> None:
    """Replace every random state and identifier that this process made before the snapshot.

    The agent calls it in every clone, after the guest kernel's own generator has been reseeded.
    """
    import random

    random.seed()
    _renew_library_state()
    _renew_session(session)


def use_proxy(url: str) -> None:
    """Let this process, and those that it starts, reach the network through a proxy, as most programs know it.

    The agent calls it when the host has said that this session may reach something.
    """
    for name in ("http_proxy", "https_proxy"):
        os.environ[name] = os.environ[name.upper()] = url
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"


def _renew_library_state() -> None:
    """Only what has been imported: what is imported later seeds itself from the reseeded system."""
    modules: dict[str, Any] = dict(sys.modules)
    if "numpy.random" in modules:
        modules["numpy.random"].seed()
    if "tempfile" in modules:
        modules["tempfile"]._name_sequence = None
    if "uuid" in modules:
        modules["uuid"]._node = None
        modules["uuid"]._last_timestamp = None
    if "platform" in modules:
        modules["platform"]._uname_cache = None
    if "ssl" in modules:
        modules["ssl"].RAND_add(os.urandom(64), 64.0)
    if "multiprocessing" in modules:
        modules["multiprocessing"].current_process().authkey = os.urandom(32)
    if "_sqlite3" in modules:
        _renew_sqlite()


def _renew_sqlite() -> None:
    """sqlite3_randomness(0, NULL) makes SQLite seed its generator anew at its next use (sqlite.org/c3ref)."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libsqlite3.so.0").sqlite3_randomness(0, None)


def _renew_session(session: str) -> None:
    """One Jupyter session id a launch: JupyterLab drops comm messages of a kernel whose id it has seen before."""
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    kernel = shell.kernel
    kernel.session.session = session
    kernel.ident = session
