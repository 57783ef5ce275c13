"""Counting tokens by the vendors that count, from any format; estimated where a model is not counted for."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google import genai
from google.genai import types
from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from tests.support import botocore_judge
from tests.support.fault_server import FaultServer, answer, running_fault_server
from tests.support.providers import KEY, KEY_ID, REGION, running_providers, settings

CLAUDE = "eu.anthropic.claude-x-20260101-v1:0"
BODY = {
    "model": "any",
    "max_tokens": 50,
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "hello"}],
    "tools": [{"name": "look", "input_schema": {"type": "object", "properties": {"a": {"type": "string"}}}}],
}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    names = ("gemini", "bedrock", "anthropic")
    async with running_providers(**{name: settings(name, server.url) for name in names}) as client:
        yield client


async def count(client: ProviderService, provider: str, model: str) -> pb.CountTokensResponse:
    attempt = pb.Attempt(
        provider=provider,
        model=model,
        raw_body=json.dumps(BODY).encode(),
        wire_format=WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES,
    )
    return await client.count_tokens(pb.CountTokensRequest(attempt=attempt), Call.internal(5))


async def test_the_vendors_clients_accept_the_fakes(server: FaultServer) -> None:
    server.script = answer({"totalTokens": 31})
    options: Any = {"base_url": server.url, "api_version": "v1beta"}
    google = genai.Client(api_key="k", http_options=options)
    told = await asyncio.to_thread(google.models.count_tokens, model="gemini-x", contents="hello")
    assert told.total_tokens == 31
    assert server.requests[0].path == "/v1beta/models/gemini-x:countTokens"
    server.script = answer({"inputTokens": 32})
    sdk = botocore_judge.client("bedrock-runtime", server.url, REGION, KEY_ID, KEY)
    messages = [{"role": "user", "content": [{"text": "hi"}]}]
    asked = {"modelId": CLAUDE, "input": {"converse": {"messages": messages}}}
    assert (await asyncio.to_thread(lambda: sdk.count_tokens(**asked)))["inputTokens"] == 32
    assert server.requests[1].path == "/model/eu.anthropic.claude-x-20260101-v1%3A0/count-tokens"


async def test_gemini_counts_everything_of_the_request(server: FaultServer, client: ProviderService) -> None:
    server.script = answer({"totalTokens": 31})
    assert await count(client, "gemini", "gemini-x") == pb.CountTokensResponse(input_tokens=31)
    [sent] = server.requests
    assert sent.path == "/v1beta/models/gemini-x:countTokens"
    request = sent.json()["generateContentRequest"]
    assert request.pop("model") == "models/gemini-x"
    assert request["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert request["contents"] == [{"role": "user", "parts": [{"text": "hello"}]}]
    [tool] = request["tools"]
    types.Tool.model_validate(tool)
    assert tool["functionDeclarations"][0]["name"] == "look"


async def test_bedrock_counts_the_conversation(server: FaultServer, client: ProviderService) -> None:
    server.script = answer({"inputTokens": 32})
    assert await count(client, "bedrock", CLAUDE) == pb.CountTokensResponse(input_tokens=32)
    [sent] = server.requests
    assert sent.path == "/model/eu.anthropic.claude-x-20260101-v1%3A0/count-tokens"
    asked = botocore_judge.check_request(sent.body, "CountTokens")["input"]["converse"]
    assert sorted(asked) == ["messages", "system", "toolConfig"]
    assert "AWS4-HMAC-SHA256" in sent.headers["Authorization"]


async def test_bedrock_counts_the_body_of_titan(server: FaultServer, client: ProviderService) -> None:
    server.script = answer({"inputTokens": 5})
    assert (await count(client, "bedrock", "amazon.titan-text-express-v1")).input_tokens == 5
    body = json.loads(server.requests[0].body)["input"]["invokeModel"]["body"]
    assert "hello" in json.loads(base64.b64decode(body))["inputText"]


UNABLE = {
    "gemini": (
        404,
        {
            "error": {
                "code": 404,
                "message": "models/x is not supported for countTokens.",
                "status": "NOT_FOUND",
            }
        },
    ),
    "bedrock": (400, {"message": "The provided model doesn't support counting tokens."}),
}


@pytest.mark.parametrize("provider", UNABLE)
async def test_a_model_that_is_not_counted_for_is_estimated(
    server: FaultServer, client: ProviderService, provider: str
) -> None:
    status, body = UNABLE[provider]
    server.script = answer(body, status, {"x-amzn-errortype": "ValidationException"})
    counted = await count(client, provider, "anthropic.claude-x")
    assert counted.estimated
    assert counted.input_tokens > 5


@pytest.mark.parametrize(
    "body", [{"detail": "Not Found"}, {"error": {"message": "no such path", "type": "x"}}]
)
async def test_a_server_without_the_path_is_estimated_for(
    server: FaultServer, client: ProviderService, body: dict[str, Any]
) -> None:
    server.script = answer(body, 404)
    counted = await count(client, "anthropic", "claude-x")
    assert counted.estimated
    assert counted.input_tokens > 5
    unknown = {"type": "error", "error": {"type": "not_found_error", "message": "model: claude-x"}}
    server.script = answer(unknown, 404)
    with pytest.raises(RpcError) as caught:
        await count(client, "anthropic", "claude-x")
    assert caught.value.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("provider", UNABLE)
@pytest.mark.parametrize(("body", "reason"), [({"other": 1}, "PROVIDER_PROTOCOL"), ({}, "PROVIDER_PROTOCOL")])
async def test_a_wrong_count_is_an_error(
    server: FaultServer, client: ProviderService, provider: str, body: dict[str, Any], reason: str
) -> None:
    server.script = answer(body)
    with pytest.raises(RpcError) as caught:
        await count(client, provider, "anthropic.claude-x")
    assert caught.value.reason == reason


@pytest.mark.parametrize("provider", UNABLE)
async def test_a_refused_credential_is_no_estimate(
    server: FaultServer, client: ProviderService, provider: str
) -> None:
    server.script = answer({"message": "no"}, 403, {"x-amzn-errortype": "AccessDeniedException"})
    with pytest.raises(RpcError) as caught:
        await count(client, provider, "anthropic.claude-x")
    assert caught.value.reason == "PROVIDER_CREDENTIAL_REFUSED"
