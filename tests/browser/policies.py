"""Kernels of the policies by which output reaches a browser, beside the default one, which is ``isolated``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.egress_profile import configure
from vm_kernel.kernel.spec import KERNEL_NAME, install

ISOLATED = KERNEL_NAME
TRUSTED = f"{KERNEL_NAME}-trusted"
STATIC = f"{KERNEL_NAME}-static"
CHARTS = f"{KERNEL_NAME}-charts"


@contextmanager
def profiles(**settings: dict[str, Any]) -> Iterator[None]:
    """Further profiles of the pool, and a kernel ``vm-sandbox-NAME`` for each."""
    installed = [install(name=f"{KERNEL_NAME}-{name}", profile=name) for name in settings]
    configure(f"c.PoolConfig.profiles.update({settings!r})")
    try:
        yield
    finally:
        configure("")
        for spec in installed:
            shutil.rmtree(spec)
