"""What the tests of the kernel process share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from jupyter_client.manager import AsyncKernelManager

from tests.conftest import StartKernel
from tests.kernel.session import Session


@pytest_asyncio.fixture
async def kernel(start_kernel: StartKernel, warm_pool: None) -> AsyncIterator[tuple[AsyncKernelManager, Session]]:
    """A kernel that is ready, and a client."""
    async with start_kernel() as (manager, client):
        yield manager, Session(client)


@pytest_asyncio.fixture
async def session(kernel: tuple[AsyncKernelManager, Session]) -> Session:
    """A client of a kernel that is ready."""
    return kernel[1]
