"""What the factory keeps on disk."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vm_kernel.pool.factory import KEEP_GOLDEN_S, _forget_unused


def test_snapshots_that_nobody_uses_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VM_KERNEL_GOLDEN", str(tmp_path))
    for name, age_s in (
        ("used", KEEP_GOLDEN_S + 9),
        ("recent", 60),
        ("old", KEEP_GOLDEN_S + 9),
        (".0123-99999999", 1e8),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ram").write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    _forget_unused("used")
    assert {path.name for path in tmp_path.iterdir()} == {"used", "recent"}
    assert time.time() - (tmp_path / "used").stat().st_mtime < 60
