"""SECURITY.md names tests, settings and commands: all of them exist."""

from __future__ import annotations

import re
from pathlib import Path

from vm_kernel.config import PoolConfig

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "SECURITY.md").read_text()


def test_the_tests_that_it_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", PAGE)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_settings_that_it_names_are_settings() -> None:
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE))
    assert "egress_max_mib" in named
    assert named - set(PoolConfig.class_trait_names(config=True)) == set()
