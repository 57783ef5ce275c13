"""A server that has responses and nothing else: every surface reaches it, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.providers.settings import ProviderSettings
from services.router.settings import RouteSettings
from tests.support import wire
from tests.support.chat_stack import KEY, running_stack
from tests.support.fault_server import FaultServer, answer, running_fault_server, sse, stream
from tests.support.providers import chat, running_providers, settings, stream_chat, text_of
from tests.support.vendors.judges import responses as judged

CHAT = WireFormat.WIRE_FORMAT_OPENAI_CHAT
MESSAGES = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
RESPONSES = WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
TEXT = "Grüße, Welt 🌍"
PIXEL = "iVBORw0KGgo="
SCHEMA = {"type": "object", "properties": {"at": {"type": "number"}}}
_IMAGE_URL = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
_IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1.0}'}}
_USE = {"type": "tool_use", "id": "call_1", "name": "look", "input": {"at": 1.0}}
_RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": "20"}
# The same conversation in the formats of other surfaces.
BODIES: dict[Any, dict[str, Any]] = {
    CHAT: {
        "model": "m",
        "max_tokens": 50,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "look"}, _IMAGE_URL]},
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "20"},
        ],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}],
        "reasoning_effort": "low",
    },
    MESSAGES: {
        "model": "m",
        "max_tokens": 50,
        "system": "Be kind.",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "look"}, _IMAGE]},
            {"role": "assistant", "content": [_USE]},
            {"role": "user", "content": [_RESULT]},
        ],
        "tools": [{"name": "look", "input_schema": SCHEMA}],
    },
}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


def alone(server: FaultServer) -> ProviderSettings:
    """Return settings of the server."""
    return settings("openai", server.url).model_copy(update={"responses": "only"})


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    async with running_providers(alone=alone(server)) as client:
        yield client


def attempt(form: Any, body: dict[str, Any], **more: Any) -> pb.Attempt:
    raw = json.dumps(body).encode()
    return pb.Attempt(provider="alone", model="real-model", raw_body=raw, wire_format=form, **more)


def typed() -> pb.Attempt:
    said = ChatInput(messages=[Message(role="user", content="hi")], max_tokens=50)
    return pb.Attempt(provider="alone", model="real-model", chat=said)


async def test_it_says_what_it_takes(client: ProviderService) -> None:
    answered = await client.get_capabilities(pb.GetCapabilitiesRequest(), Call.internal(5))
    [found] = [each for each in answered.providers if each.provider == "alone"]
    assert list(found.wire_formats) == [RESPONSES]
    assert {"chat", "stream", "tools", "responses"} <= set(found.features)


@pytest.mark.parametrize("form", BODIES)
async def test_other_formats_are_translated(server: FaultServer, client: ProviderService, form: Any) -> None:
    server.script = answer(wire.openai_response())
    response = await chat(client, attempt(form, BODIES[form]))
    [asked] = server.requests
    assert asked.path == "/v1/responses"
    sent = judged(asked.body)
    assert (sent["model"], sent["store"], sent["max_output_tokens"]) == ("real-model", False, 50)
    assert PIXEL in json.dumps(sent["input"])
    assert [item["call_id"] for item in sent["input"] if "call_id" in item] == ["call_1"] * 2
    assert [tool["name"] for tool in sent["tools"]] == ["look"]
    assert "".join(part.text.text for part in response.message.parts) == TEXT
    [call] = [part.tool_call for part in response.message.parts if part.HasField("tool_call")]
    assert (call.id, call.arguments_json) == ("call_a", '{"x": 1.0}')
    assert response.finish.reason == "tool_calls"
    assert (response.usage.input_total, response.usage.output_total) == (20, 9)
    told = {entry.name.partition("[")[0].partition(".")[0] for entry in response.receipt}
    assert BODIES[form].keys() <= told
    assert "dropped" not in {entry.outcome for entry in response.receipt}


async def test_typed_callers_are_answered_the_same_both_ways(
    server: FaultServer, client: ProviderService
) -> None:
    server.script = stream(wire.responses_stream())
    start, *events, end = await stream_chat(client, typed())
    assert not start.start.wire_format
    assert text_of(events) == TEXT
    assert (end.end.finish.reason, end.end.usage.output_total) == ("tool_calls", 9)
    server.script = answer(wire.openai_response())
    response = await chat(client, typed())
    assert "".join(part.text.text for part in response.message.parts) == TEXT
    assert [asked.path for asked in server.requests] == ["/v1/responses"] * 2
    assert [judged(asked.body).get("stream") for asked in server.requests] == [True, None]


async def test_a_translated_stream_without_its_end_is_no_answer(
    server: FaultServer, client: ProviderService
) -> None:
    server.script = stream(sse(*wire.RESPONSES_EVENTS[:-1], event=True))
    with pytest.raises(RpcError) as caught:
        await stream_chat(client, typed())
    assert (caught.value.reason, caught.value.metadata["phase"]) == ("STREAM_TRUNCATED", "mid_stream")
    failed = {"type": "error", "code": "rate_limit_exceeded", "message": "slow", "param": None}
    server.script = stream(sse(*wire.RESPONSES_EVENTS[:-1], failed, event=True))
    with pytest.raises(RpcError) as caught:
        await stream_chat(client, typed())
    assert caught.value.reason == "PROVIDER_RATE_LIMITED"
    assert len(server.requests) == 2


async def test_an_answer_that_goes_on_unasked_is_none(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire.openai_response("queued"))
    with pytest.raises(RpcError, match="in the background") as caught:
        await chat(client, typed())
    assert caught.value.reason == "PROVIDER_PROTOCOL"
    assert len(server.requests) == 1


async def test_its_own_format_goes_as_it_is_and_can_be_read(
    server: FaultServer, client: ProviderService
) -> None:
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    body = {"model": "m", "instructions": "Be kind.", "input": "hi", "store": False, "text": {"format": form}}
    server.script = answer(wire.openai_response())
    response = await chat(client, attempt(RESPONSES, body))
    assert json.loads(response.raw_body) == wire.openai_response()
    # Who goes on with another provider's answer wants typed events.
    response = await chat(client, attempt(RESPONSES, body, typed=True))
    assert not response.HasField("raw_body")
    as_it_is, read = (judged(asked.body) for asked in server.requests)
    assert as_it_is == {**body, "model": "real-model"}
    assert read["text"]["format"]["schema"] == SCHEMA
    assert {asked.path for asked in server.requests} == {"/v1/responses"}


async def test_every_client_reads_its_text(server: FaultServer, tmp_path: Path) -> None:
    routes = {"m": RouteSettings(route=["alone/real-model"], retries=0)}
    asked: Any = [{"role": "user", "content": "hi"}]
    async with (
        running_stack(tmp_path, {"alone": alone(server)}, routes) as stack,
        openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as gpt,
        anthropic.AsyncAnthropic(base_url=stack.url, api_key=KEY, max_retries=0) as claude,
    ):
        server.script = answer(wire.openai_response())
        completion = await gpt.chat.completions.create(model="m", messages=asked)
        response = await gpt.responses.create(model="m", input="hi")
        message: Any = await claude.messages.create(model="m", messages=asked, max_tokens=50)
        server.script = stream(wire.responses_stream())
        async with claude.messages.stream(model="m", messages=asked, max_tokens=50) as events:
            streamed: Any = await events.get_final_message()
        chunks = await gpt.chat.completions.create(model="m", messages=asked, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
    assert completion.choices[0].message.content == response.output_text == "".join(pieces) == TEXT
    for each in (message, streamed):
        assert [block.text for block in each.content if block.type == "text"] == [TEXT]
        assert each.stop_reason == "tool_use"
    assert {request.path for request in server.requests} == {"/v1/responses"}
