"""One listener and one providers service for a module; a fresh server for each test."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from omnihub.provider.v1.provider_service_api import ProviderService

from tests.support.fault_server import FaultServer, SharedFaultServer, running_shared_fault_server
from tests.support.providers import KEY, running_providers
from tests.support.vendors import VENDORS
from tests.support.vendors.table import PROMPT


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def listener() -> AsyncIterator[SharedFaultServer]:
    async with running_shared_fault_server() as shared:
        yield shared


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(listener: SharedFaultServer) -> AsyncIterator[ProviderService]:
    configured = {name: vendor.settings(listener.url) for name, vendor in VENDORS.items()}
    async with running_providers(**configured) as running:
        yield running


@pytest.fixture
def server(listener: SharedFaultServer) -> FaultServer:
    return listener.fresh()


@pytest.fixture(autouse=True)
def nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever goes wrong: no key and no prompt in any log, however chatty it is."""
    caplog.set_level(logging.DEBUG)
    yield
    said = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert KEY not in said
    assert PROMPT not in said
