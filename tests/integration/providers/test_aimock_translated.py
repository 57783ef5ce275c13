"""Gemini and Ollama against a fake of their APIs that others wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, Tool
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from tests.support.adapters import openai_shaped
from tests.support.aimock import running_aimock
from tests.support.providers import chat, running_providers, settings, stream_chat, text_of
from tests.unit.formats.test_translation import FULL_OPENAI

GREETING = "Hello! How can I help you today?"
THOUGHT = "The user greets me."
USAGE = {"prompt_tokens": 7, "completion_tokens": 9}
FIXTURES = [
    {
        "match": {"userMessage": "hello"},
        "response": {"content": GREETING, "reasoning": THOUGHT, "usage": USAGE},
    },
    {
        "match": {"userMessage": "weather"},
        "response": {
            "toolCalls": [
                {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                {"name": "get_time", "arguments": "{}"},
            ]
        },
    },
    {"match": {"userMessage": "And now?"}, "response": {"content": "The full request arrived."}},
    {
        "match": {"userMessage": "too fast"},
        "response": {
            "error": {"message": "slow down", "type": "RESOURCE_EXHAUSTED"},
            "status": 429,
            "retryAfter": 3,
        },
    },
]
CALLS = [["get_weather", '{"city":"Paris"}'], ["get_time", "{}"]]


def asked(provider: str, text: str, *tools: Tool) -> pb.Attempt:
    chat_input = ChatInput(messages=[Message(role="user", content=text)], tools=tools)
    return pb.Attempt(provider=provider, model="gemini-2.5-flash", chat=chat_input)


async def check_chat(client: ProviderService, provider: str) -> None:
    answer = await chat(client, asked(provider, "hello"))
    _, *events, end = await stream_chat(client, asked(provider, "hello"))
    assert text_of(events) == answer.message.parts[-1].text.text == GREETING
    assert end.end.finish.reason == answer.finish.reason == "stop"
    if provider == "gemini":
        assert answer.message.parts[0].reasoning.text == THOUGHT
        assert "".join(event.part_delta.reasoning for event in events) == THOUGHT
        assert (answer.usage.input_total, answer.usage.output_total) == (7, 9)
        assert end.end.usage == answer.usage


async def check_tools(client: ProviderService, provider: str) -> None:
    tools = [Tool(name="get_weather", parameters_json='{"type":"object"}'), Tool(name="get_time")]
    answer = await chat(client, asked(provider, "weather", *tools))
    calls = [part.tool_call for part in answer.message.parts if part.HasField("tool_call")]
    assert [[call.name, call.arguments_json] for call in calls] == CALLS
    streamed: dict[int, list[str]] = {}
    for message in await stream_chat(client, asked(provider, "weather", *tools)):
        if message.part_start.part.HasField("tool_call"):
            streamed[message.part_start.index] = [message.part_start.part.tool_call.name, ""]
        elif message.part_delta.arguments_json:
            streamed[message.part_delta.index][1] += message.part_delta.arguments_json
    assert list(streamed.values()) == CALLS


async def check_full_request(client: ProviderService, provider: str) -> None:
    body = json.loads(json.dumps(FULL_OPENAI))
    if provider == "ollama":
        body["messages"][2]["content"] = body["messages"][2]["content"][:2]
    answer = await chat(client, openai_shaped(provider, body))
    assert answer.message.parts[-1].text.text == "The full request arrived."


async def check_errors(client: ProviderService, provider: str) -> None:
    for ask in (chat, stream_chat):
        with pytest.raises(RpcError) as caught:
            await ask(client, asked(provider, "too fast"))
        assert (caught.value.reason, caught.value.retry_after_s) == ("PROVIDER_RATE_LIMITED", 3)


@pytest.mark.matrix(row=1, adapter="gemini")
@pytest.mark.matrix(row=1, adapter="ollama")
@pytest.mark.matrix(row=2, adapter="gemini")
@pytest.mark.matrix(row=2, adapter="ollama")
@pytest.mark.matrix(row=5, adapter="gemini")
@pytest.mark.matrix(row=5, adapter="ollama")
@pytest.mark.matrix(row=6, adapter="gemini")
async def test_both_adapters(tmp_path: Path) -> None:
    """Gaps of the fake: another word for the finish of Gemini's calls, no batches of its embeddings
    and no list of its models; no usage of Ollama's, and the shape of its older embeddings.
    """
    async with running_aimock(FIXTURES, tmp_path) as url:
        configured = {name: settings(name, url) for name in ("gemini", "ollama")}
        async with running_providers(**configured) as client:
            for provider in configured:
                await check_chat(client, provider)
                await check_tools(client, provider)
                await check_full_request(client, provider)
                await check_errors(client, provider)
            listed = await client.list_models(pb.ListModelsRequest(provider="ollama"), Call.internal(5))
            assert listed.models
