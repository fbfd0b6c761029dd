"""A pool service with other settings than the usual ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import CONFIG, stop_service, write_config

Configured = Callable[[str], None]


@pytest.fixture
def configured(vm_home: Path) -> Iterator[Configured]:
    """A function that restarts the service with another configuration; afterwards the usual one is back."""

    def restart_with(text: str) -> None:
        stop_service()
        write_config(CONFIG + text)

    yield restart_with
    restart_with("")
