"""A bench for each database, and a receiver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.support.files import Bench, Receiver, close_bench, open_bench


@pytest_asyncio.fixture
async def bench(database_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = await open_bench(
        tmp_path,
        database_url,
        largest_upload_bytes=300_000,
        largest_input_bytes=500_000,
        allow_private_urls=True,
        provenance=False,
    )
    yield bench
    await close_bench(bench)


@pytest_asyncio.fixture
async def light(tmp_path: Path) -> AsyncIterator[Bench]:
    """One database is enough for what never reaches it."""
    url = f"sqlite:///{tmp_path}/light.db"
    light = await open_bench(
        tmp_path,
        url,
        largest_upload_bytes=300_000,
        largest_input_bytes=500_000,
        allow_private_urls=True,
        provenance=False,
    )
    yield light
    await close_bench(light)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.stop()
