"""Fakes of the vendors, and the providers service in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.jobs.conftest import engine as engine
from tests.support import fake_automatic1111, fake_comfyui, fake_fal, fake_replicate
from tests.support.fake_vendor import FakeVendor, running
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


@pytest_asyncio.fixture
async def comfy() -> AsyncIterator[fake_comfyui.FakeComfy]:
    async with running(fake_comfyui.FakeComfy()) as vendor:
        yield vendor


@pytest_asyncio.fixture
async def on_comfy(comfy: fake_comfyui.FakeComfy, tmp_path: Path) -> AsyncIterator[Maker]:
    settings = {
        "adapter": "comfyui",
        "base_url": comfy.url,
        "workflows": fake_comfyui.graphs(tmp_path),
        "timeouts": LIMITS,
    }
    async with running_media(comfy=settings) as client:
        yield Maker(client, "comfy", "sdxl")


@pytest_asyncio.fixture
async def a1111() -> AsyncIterator[fake_automatic1111.FakeAutomatic1111]:
    async with running(fake_automatic1111.FakeAutomatic1111()) as vendor:
        yield vendor


@pytest_asyncio.fixture
async def on_a1111(a1111: fake_automatic1111.FakeAutomatic1111) -> AsyncIterator[Maker]:
    settings = {
        "adapter": "automatic1111",
        "base_url": a1111.url,
        "api_key": fake_automatic1111.LOGIN,
        "timeouts": LIMITS,
    }
    async with running_media(a1111=settings) as client:
        yield Maker(client, "a1111", "dreamshaper")


@pytest.fixture
def vendors(
    replicate, on_replicate, fal, on_fal, comfy, on_comfy, a1111, on_a1111
) -> dict[str, tuple[FakeVendor, Maker]]:
    """Every vendor with its adapter, for what they share."""
    return {
        "replicate": (replicate, on_replicate),
        "fal": (fal, on_fal),
        "comfy": (comfy, on_comfy),
        "a1111": (a1111, on_a1111),
    }
