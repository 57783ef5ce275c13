"""What every contract test runs over: both transports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import uvloop

from services.common.rpc.server import Gate
from tests.support.echo import TRANSPORTS, Echo


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of production, and that of the standard library."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=list(TRANSPORTS))
async def connect(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Any]:
    """A function that serves handlers and returns a client of them.

    At the end nothing may be left: no task, and no complaint of grpc or asyncio in the log.
    """
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:

        async def start(gate: Gate | None = None, **handlers: Any) -> Any:
            return await stack.enter_async_context(TRANSPORTS[request.param](Echo(**handlers), gate))

        yield start
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=5)
    assert not left
    assert not [record for record in caplog.records if record.name.startswith(("grpc", "asyncio"))]
