"""What the tests of the kernel process share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from jupyter_client.manager import AsyncKernelManager, KernelManager, start_new_kernel

from tests.conftest import StartKernel
from tests.kernel.session import TIMEOUT_S, Session, connected


@pytest_asyncio.fixture
async def kernel(start_kernel: StartKernel, warm_pool: None) -> AsyncIterator[tuple[AsyncKernelManager, Session]]:
    """A kernel of the test's own that is ready, and a client."""
    async with start_kernel() as (manager, client):
        yield manager, Session(client)


@pytest.fixture
def fresh_session(kernel: tuple[AsyncKernelManager, Session]) -> Session:
    """A client of a kernel that nobody has used."""
    return kernel[1]


@pytest.fixture(scope="module")
def shared_kernel(kernelspec: str, warm_pool: None) -> Iterator[KernelManager]:
    """A kernel for all tests of a module that leave it as usable as they found it."""
    manager, client = start_new_kernel(kernel_name=kernelspec, startup_timeout=TIMEOUT_S)
    client.stop_channels()
    yield manager
    manager.shutdown_kernel()


@pytest_asyncio.fixture
async def session(shared_kernel: KernelManager) -> AsyncIterator[Session]:
    """A client of the module's kernel, in which other tests have run cells."""
    async with connected(shared_kernel) as session:
        yield session
