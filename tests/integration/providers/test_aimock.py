"""Against a fake of the vendors' APIs that others wrote."""

from __future__ import annotations

import json
from pathlib import Path

import anthropic
import openai
import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, Tool, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.formats import anthropic_messages, openai_chat
from tests.support.aimock import running_aimock
from tests.support.providers import chat, running_providers, settings, stream_chat, text_of

GREETING = "Hello! How can I help you today?"
USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "input_tokens": 7, "output_tokens": 9}
FIXTURES = [
    {"match": {"userMessage": "hello"}, "response": {"content": GREETING, "usage": USAGE}},
    {
        "match": {"userMessage": "weather"},
        "response": {
            "toolCalls": [
                {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                {"name": "get_time", "arguments": "{}"},
            ]
        },
    },
    {
        "match": {"userMessage": "too fast"},
        "response": {
            "error": {"message": "slow down", "type": "rate_limit_error"},
            "status": 429,
            "retryAfter": 3,
        },
    },
]


async def check_chat(client: ProviderService, provider: str) -> None:
    asked = pb.Attempt(
        provider=provider, model="m", chat=ChatInput(messages=[Message(role="user", content="hello")])
    )
    answer = await chat(client, asked)
    assert (answer.message.content or answer.message.parts[0].text.text) == GREETING
    assert (answer.usage.input_total, answer.usage.output_total) == (7, 9)
    _, *events, end = await stream_chat(client, asked)
    assert text_of(events) == GREETING
    assert end.end.finish.reason == answer.finish.reason == "stop"


async def check_tools(client: ProviderService, provider: str) -> None:
    tools = [Tool(name="get_weather", parameters_json='{"type":"object"}'), Tool(name="get_time")]
    chat_input = ChatInput(messages=[Message(role="user", content="weather")], tools=tools)
    asked = pb.Attempt(provider=provider, model="m", chat=chat_input)
    calls = [
        part.tool_call for part in (await chat(client, asked)).message.parts if part.HasField("tool_call")
    ]
    assert [(call.name, call.arguments_json) for call in calls] == [
        ("get_weather", '{"city":"Paris"}'),
        ("get_time", "{}"),
    ]
    streamed: dict[int, list[str]] = {}
    for message in await stream_chat(client, asked):
        if message.part_start.part.HasField("tool_call"):
            streamed[message.part_start.index] = [message.part_start.part.tool_call.name, ""]
        elif message.part_delta.arguments_json:
            streamed[message.part_delta.index][1] += message.part_delta.arguments_json
    assert list(streamed.values()) == [["get_weather", '{"city":"Paris"}'], ["get_time", "{}"]]


async def check_raw(client: ProviderService) -> None:
    """Forward raw streams; the vendors' own clients read what comes out."""
    body = {
        "model": "m",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
    }
    for provider, wire_format, module in (
        ("openai", WireFormat.WIRE_FORMAT_OPENAI_CHAT, openai_chat),
        ("anthropic", WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES, anthropic_messages),
    ):
        asked = pb.Attempt(
            provider=provider, model="m", raw_body=json.dumps(body).encode(), wire_format=wire_format
        )
        _, *frames, end = await stream_chat(client, asked)
        assert text_of(frames) == GREETING
        assert (end.end.usage.input_total, end.end.usage.output_total) in {(7, 9), (0, 9)}
        assert module.close_raw_stream(end.end.raw_tail)


async def check_errors(client: ProviderService, provider: str) -> None:
    asked = pb.Attempt(
        provider=provider, model="m", chat=ChatInput(messages=[Message(role="user", content="too fast")])
    )
    for ask in (chat, stream_chat):
        with pytest.raises(RpcError) as caught:
            await ask(client, asked)
        assert (caught.value.reason, caught.value.retry_after_s) == ("PROVIDER_RATE_LIMITED", 3)


@pytest.mark.matrix(row=1, adapter="openai")
@pytest.mark.matrix(row=1, adapter="anthropic")
@pytest.mark.matrix(row=2, adapter="openai")
@pytest.mark.matrix(row=2, adapter="anthropic")
@pytest.mark.matrix(row=5, adapter="openai")
@pytest.mark.matrix(row=5, adapter="anthropic")
@pytest.mark.matrix(row=6, adapter="openai")
@pytest.mark.matrix(row=6, adapter="anthropic")
@pytest.mark.matrix(row=21, adapter="openai")
@pytest.mark.matrix(row=21, adapter="anthropic")
async def test_both_adapters(tmp_path: Path) -> None:
    async with running_aimock(FIXTURES, tmp_path) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as sdk:
            completion = await sdk.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hello"}]
            )
            assert completion.choices[0].message.content == GREETING
        async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as vendor:
            message = await vendor.messages.create(
                model="m", max_tokens=9, messages=[{"role": "user", "content": "hello"}]
            )
            assert message.content[0].text == GREETING
        configured = {name: settings(name, url) for name in ("openai", "anthropic")}
        async with running_providers(**configured) as client:
            for provider in configured:
                await check_chat(client, provider)
                await check_tools(client, provider)
                await check_errors(client, provider)
            await check_raw(client)
            request = pb.EmbedRequest(provider="openai", model="e", inputs=["a", "b"])
            vectors = (await client.embed(request, Call.internal(5))).embeddings
            assert len(vectors) == 2
            listed = await client.list_models(pb.ListModelsRequest(provider="openai"), Call.internal(5))
            assert listed.models
