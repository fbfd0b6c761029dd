"""How pytest-xdist shares the tests out: by file or folder, and in an order that lets its workers end together."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest

#: What takes longest begins first, and beside it, while the first golden snapshot is built, what needs none.
FIRST = ("tests/browser", "tests/fuzz", "tests/outputs", "tests/hostile_guest", "tests/pool/test_hostile_cells.py")
#: folders whose tests share something that takes long to make
TOGETHER = ("tests/browser", "tests/hostile_guest")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``--no-loadscope-reorder`` tests are given out in this order."""
    items.sort(key=lambda item: _turn(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What pytest-xdist's documentation shows for groups of one's own."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return ByGroup(config, log)


def _group(name: str) -> str:
    file = name.partition("::")[0]
    folder = str(PurePosixPath(file).parent)
    return folder if folder in TOGETHER else file


def _turn(name: str) -> int:
    found = [turn for turn, begin in enumerate(FIRST) if name.startswith(begin)]
    return found[0] if found else len(FIRST)
