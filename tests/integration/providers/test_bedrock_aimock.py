"""Bedrock against a fake that others wrote, with the vendor's own client beside ours."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import RpcError
from tests.support import botocore_judge
from tests.support.aimock import running_aimock
from tests.support.bedrock import CLAUDE, cell, typed
from tests.support.providers import (
    KEY,
    KEY_ID,
    REGION,
    chat,
    running_providers,
    settings,
    stream_chat,
    text_of,
)

GREETING = "Hello! How can I help you today?"
THOUGHT = "The user greets me."
USAGE = {"input_tokens": 7, "output_tokens": 9}
FIXTURES = [
    {"match": {"userMessage": "hello"}, "response": {"content": GREETING, "usage": USAGE}},
    {
        "match": {"userMessage": "think"},
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
    {
        "match": {"userMessage": "too fast"},
        "response": {"error": {"message": "slow down", "type": "x"}, "status": 429, "retryAfter": 3},
    },
    {
        "match": {"userMessage": "stuck"},
        "response": {"content": GREETING},
        "disconnectAfterMs": 50,
        "latency": 20,
        "chunkSize": 2,
    },
]


@cell(1, 2, 5, 6, 21, 31)
async def test_converse(tmp_path: Path) -> None:
    async with running_aimock(FIXTURES, tmp_path) as url:
        sdk = botocore_judge.client("bedrock-runtime", url, REGION, KEY_ID, KEY)
        asked = {"modelId": CLAUDE, "messages": [{"role": "user", "content": [{"text": "hello"}]}]}
        read = await asyncio.to_thread(lambda: sdk.converse(**asked))
        assert read["output"]["message"]["content"] == [{"text": GREETING}]
        async with running_providers(bedrock=settings("bedrock", url)) as client:
            await check_chat(client)
            await check_tools(client)
            await check_errors(client)


def asked_for(text: str) -> pb.Attempt:
    attempt = typed()
    attempt.chat.messages[0].content = text
    return attempt


async def check_chat(client: ProviderService) -> None:
    answer = await chat(client, asked_for("hello"))
    assert answer.message.parts[0].text.text == GREETING
    assert (answer.usage.input_total, answer.usage.output_total) == (7, 9)
    _, *events, end = await stream_chat(client, asked_for("hello"))
    assert text_of(events) == GREETING
    assert (end.end.finish, end.end.usage) == (answer.finish, answer.usage)
    _, *events, end = await stream_chat(client, asked_for("think"))
    assert "".join(event.part_delta.reasoning for event in events) == THOUGHT
    assert text_of(events) == GREETING


async def check_tools(client: ProviderService) -> None:
    attempt = asked_for("weather")
    attempt.chat.tools.add(name="get_weather", parameters_json='{"type":"object"}')
    attempt.chat.tools.add(name="get_time")
    expected = [("get_weather", '{"city":"Paris"}'), ("get_time", "{}")]
    parts = (await chat(client, attempt)).message.parts
    calls = [part.tool_call for part in parts if part.HasField("tool_call")]
    assert [(call.name, call.arguments_json) for call in calls] == expected
    streamed: dict[int, list[str]] = {}
    for message in await stream_chat(client, attempt):
        if message.part_start.part.HasField("tool_call"):
            streamed[message.part_start.index] = [message.part_start.part.tool_call.name, ""]
        elif message.part_delta.arguments_json:
            streamed[message.part_delta.index][1] += message.part_delta.arguments_json
    assert [tuple(call) for call in streamed.values()] == expected


async def check_errors(client: ProviderService) -> None:
    for ask in (chat, stream_chat):
        with pytest.raises(RpcError) as caught:
            await ask(client, asked_for("too fast"))
        assert (caught.value.reason, caught.value.retry_after_s) == ("PROVIDER_RATE_LIMITED", 3)
    with pytest.raises(RpcError) as caught:
        await stream_chat(client, asked_for("stuck"))
    assert caught.value.reason in {"STREAM_TRUNCATED", "PROVIDER_FAILED", "PROVIDER_PROTOCOL"}
