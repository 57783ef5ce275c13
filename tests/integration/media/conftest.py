"""Fakes of the vendors, and the providers service in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.integration.jobs.conftest import engine as engine
from tests.support import fake_fal, fake_replicate
from tests.support.fake_vendor import running
from tests.support.media import Maker, running_media

LIMITS = {"connect_s": 2, "total_s": 20, "idle_s": 5}


@pytest_asyncio.fixture
async def replicate() -> AsyncIterator[fake_replicate.FakeReplicate]:
    async with running(fake_replicate.FakeReplicate()) as vendor:
        yield vendor


@pytest_asyncio.fixture
async def fal() -> AsyncIterator[fake_fal.FakeFal]:
    async with running(fake_fal.FakeFal()) as vendor:
        yield vendor


@pytest_asyncio.fixture
async def on_replicate(replicate: fake_replicate.FakeReplicate) -> AsyncIterator[Maker]:
    settings = {
        "adapter": "replicate",
        "base_url": f"{replicate.url}/v1",
        "api_key": fake_replicate.KEY,
        "timeouts": LIMITS,
    }
    async with running_media(rep=settings) as client:
        yield Maker(client, "rep", "owner/name")


@pytest_asyncio.fixture
async def on_fal(fal: fake_fal.FakeFal) -> AsyncIterator[Maker]:
    settings = {
        "adapter": "fal",
        "base_url": fal.url,
        "api_key": fake_fal.KEY,
        "webhook_keys_url": f"{fal.url}/.well-known/jwks.json",
        "timeouts": LIMITS,
    }
    async with running_media(fal=settings) as client:
        yield Maker(client, "fal", "fal-ai/flux/schnell")
