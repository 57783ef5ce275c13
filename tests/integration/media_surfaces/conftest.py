"""The facade's media paths, called by the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest_asyncio

from tests.support.media_facade import KEY, OTHER_KEY, MediaFacade, running_media_facade


@pytest_asyncio.fixture
async def facade(tmp_path: Path) -> AsyncIterator[MediaFacade]:
    async with running_media_facade(tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def client(facade: MediaFacade) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{facade.url}/v1", api_key=KEY, max_retries=0, timeout=20
    ) as running:
        yield running


@pytest_asyncio.fixture
async def stranger(facade: MediaFacade) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{facade.url}/v1", api_key=OTHER_KEY, max_retries=0, timeout=20
    ) as running:
        yield running


@pytest_asyncio.fixture
async def http(facade: MediaFacade) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=facade.url, headers=headers, timeout=20) as running:
        yield running
