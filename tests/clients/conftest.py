"""What the tests of the clients share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _pool_is_warm(warm_pool: None) -> None:
    """No test pays for the golden snapshot."""
