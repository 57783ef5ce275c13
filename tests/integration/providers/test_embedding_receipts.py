"""Every parameter of an embedding is accounted for, as those of a chat are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, get_type_hints

import pytest
import pytest_asyncio
from omnihub.provider.v1 import provider_service_pb2 as pb
from openai.types.embedding_create_params import EmbeddingCreateParams

from services.common.rpc import Call, RpcError
from services.providers.settings import ProviderSettings
from tests.support.fault_server import FaultServer, Recorded, Step, answer, running_fault_server
from tests.support.plugins import GoodProvider, serving
from tests.support.providers import running_providers, settings

MODELS = {
    "openai": "e",
    "huggingface": "some/e",
    "gemini": "e",
    "bedrock": "amazon.titan-embed-text-v2:0",
    "ollama": "e",
    "local": "hash",
    "plugin": "hash",
}
# It gets the caller's own body.
OWN = "openai"
VALUES: dict[str, Any] = {
    "model": "alias",
    "input": "t",
    "dimensions": 8,
    "encoding_format": "base64",
    "user": "u",
    "odd": {"any": "thing"},
    "empty": None,
}
# Its models have one size each; a vector of another would be of no use, so that is refused always.
SIZED = [adapter for adapter in MODELS if adapter != "huggingface"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


def respond(request: Recorded) -> list[Step]:
    if "batchEmbedContents" in request.path:
        return answer({"embeddings": [{"values": [1.0]}], "usageMetadata": {"promptTokenCount": 1}})
    if request.path.endswith("/invoke"):
        return answer({"embedding": [1.0], "inputTextTokenCount": 1})
    if request.path.endswith("/feature-extraction"):
        return answer([[1.0]])
    if request.path == "/api/embed":
        return answer({"model": "e", "embeddings": [[1.0]], "prompt_eval_count": 1})
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    data = [{"object": "embedding", "index": 0, "embedding": [1.0]}]
    return answer({"object": "list", "model": "e", "data": data, "usage": usage})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[FaultServer]:
    def configure(server: FaultServer) -> None:
        server.choose = respond

    async with running_fault_server(configure) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: FaultServer) -> AsyncIterator[Any]:
    configured = {name: settings(name, server.url) for name in MODELS if name not in ("local", "plugin")}
    async with serving(GoodProvider()) as address:
        plugin = ProviderSettings.model_validate({"adapter": "plugin", "address": address})
        async with running_providers(**configured, plugin=plugin) as running:
            yield running


async def embed(client: Any, adapter: str, **fields: Any) -> pb.EmbedResponse:
    request = pb.EmbedRequest(provider=adapter, model=MODELS[adapter], **fields)
    response: pb.EmbedResponse = await client.embed(request, Call.internal(10))
    return response


def body_for(adapter: str) -> dict[str, Any]:
    return {name: value for name, value in VALUES.items() if name != "dimensions" or adapter in SIZED}


async def test_the_values_cover_the_schema() -> None:
    assert set(get_type_hints(EmbeddingCreateParams)) <= set(VALUES)


@pytest.mark.parametrize("adapter", MODELS)
async def test_every_parameter_is_accounted_for(client: Any, server: FaultServer, adapter: str) -> None:
    body = body_for(adapter)
    server.requests.clear()
    response = await embed(client, adapter, raw_body=json.dumps(body).encode())
    told = {entry.name: entry.outcome for entry in response.receipt}
    assert set(body) <= set(told)
    assert told["model"] == "translated"
    if adapter == OWN:
        assert set(told.values()) == {"translated", "forwarded"}
        assert set(body) <= set(server.requests[0].json())
        return
    dropped = {name for name, outcome in told.items() if outcome == "dropped"}
    assert dropped == {"user", "odd"}
    assert told["encoding_format"] == told["input"] == told["empty"] == "translated"
    if adapter in SIZED:
        assert told["dimensions"] in ("translated", "forwarded")
    for request in server.requests:
        assert not {"user", "odd"} & set(request.json())


@pytest.mark.parametrize("adapter", MODELS)
async def test_strict_refuses_before_anything_is_spent(
    client: Any, server: FaultServer, adapter: str
) -> None:
    base = {"model": "alias", "input": "t", "encoding_format": "float"}
    assert (await embed(client, adapter, raw_body=json.dumps(base).encode(), strict=True)).receipt
    server.requests.clear()
    for name in ("user", "odd"):
        body = json.dumps({**base, name: VALUES[name]}).encode()
        if adapter == OWN:
            assert (await embed(client, adapter, raw_body=body, strict=True)).receipt
            continue
        with pytest.raises(RpcError) as caught:
            await embed(client, adapter, raw_body=body, strict=True)
        assert caught.value.reason == "PARAMETER_UNSUPPORTED"
        assert [each.field for each in caught.value.violations] == [name]
    assert len(server.requests) == (2 if adapter == OWN else 0)


@pytest.mark.parametrize("adapter", MODELS)
async def test_typed_callers_get_a_receipt_too(client: Any, adapter: str) -> None:
    fields: dict[str, Any] = {"dimensions": 8} if adapter in SIZED else {}
    response = await embed(client, adapter, inputs=["t"], strict=True, **fields)
    told = {entry.name: entry.outcome for entry in response.receipt}
    assert set(told) >= {"model", "inputs", *fields}
    assert "dropped" not in told.values()


async def test_invented_names_do_not_fill_the_record(client: Any) -> None:
    many = {"input": "t", **{f"x{number}{'y' * 100}": 1 for number in range(5000)}}
    for adapter in MODELS:
        response = await embed(client, adapter, raw_body=json.dumps(many).encode())
        assert 0 < len(response.receipt) <= 200
