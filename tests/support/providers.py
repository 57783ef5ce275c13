"""The providers service in this process, behind the interface its callers use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, Connector, Registry
from services.common.service import Infrastructure
from services.providers.app import build
from services.providers.settings import ProviderSettings

KEY = "sk-test-0123456789"
# Of providers whose requests are signed.
KEY_ID, REGION = "AKIDEXAMPLE", "eu-west-1"


def settings(adapter: str, url: str, **limits: float) -> ProviderSettings:
    """Return settings of a provider at `url`; limits in seconds."""
    base_url = f"{url}/v1" if adapter == "openai" else url
    credential = {"api_key": KEY}
    if adapter == "bedrock":
        credential = {"region": REGION, "access_key_id": KEY_ID, "secret_access_key": KEY}
    return ProviderSettings.model_validate(
        {"adapter": adapter, "base_url": base_url, "timeouts": limits, **credential}
    )


@asynccontextmanager
async def running_providers(**providers: ProviderSettings) -> AsyncIterator[ProviderService]:
    """Run the service with these providers and return a client of it."""
    registry = Registry()
    connector = Connector(registry, {})
    with TemporaryDirectory() as folder:
        service = build(providers, Infrastructure(connector=connector, data_dir=Path(folder)))
        for interface, implementation in service.interfaces:
            registry.add(interface, implementation)
        await service.start()
        try:
            yield connector.connect(ProviderService, "providers")
        finally:
            await service.stop()


async def chat(client: ProviderService, attempt: pb.Attempt) -> pb.ChatResponse:
    """Ask once."""
    return await client.chat(pb.ChatRequest(attempt=attempt), Call.internal(30))


async def stream_chat(client: ProviderService, attempt: pb.Attempt) -> list[pb.StreamChatResponse]:
    """Ask once and return all messages of the stream."""
    stream = client.stream_chat(pb.StreamChatRequest(attempt=attempt), Call.internal(30))
    return [message async for message in stream]


def text_of(messages: list[pb.StreamChatResponse]) -> str:
    """Return the text of a stream, raw or typed."""
    return "".join(
        message.raw_frame.text if message.HasField("raw_frame") else message.part_delta.text
        for message in messages
    )
