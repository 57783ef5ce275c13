"""A backend, an Envoy in front of it, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
import pytest_asyncio

from tests.support.edge import KEY, Backend, running_backend, running_edge

ORIGIN = "http://console.test"


# Tests that change nothing in the edge share one: `pytestmark = pytest.mark.asyncio(loop_scope="session")`.
@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Backend, int]]:
    """A backend, and the port of an Envoy with limits so small that tests can reach them."""
    options = {"json_body_limit_bytes": 65_536, "body_limit_bytes": 200_000, "cors_origins": [ORIGIN]}
    folder = tmp_path_factory.mktemp("edge")
    async with running_backend() as running, running_edge(folder, backend=running, **options) as port:
        yield running, port


@pytest.fixture
def backend(shared: tuple[Backend, int]) -> Backend:
    shared[0].forget()
    return shared[0]


@pytest.fixture
def port(shared: tuple[Backend, int]) -> int:
    return shared[1]


@pytest_asyncio.fixture(loop_scope="session")
async def client(port: int, backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=5) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def channel(port: int, backend: Backend) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as running:
        yield running
