"""Vendors that speak OpenAI's format in their own way: frames as they really send them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.providers.settings import ProviderSettings
from tests.support import wire
from tests.support.adapters import openai_shaped
from tests.support.fault_server import (
    Endless,
    FaultServer,
    Head,
    answer,
    running_fault_server,
    sse,
    stream,
)
from tests.support.matrix import cells
from tests.support.providers import KEY, chat, running_providers, stream_chat, text_of

VENDORS = ("groq", "huggingface", "openrouter")
SHORT = {"first_token_s": 0.2, "idle_s": 0.2, "total_s": 0.6, "connect_s": 0.5}
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
RAW = pytest.mark.parametrize("raw", [True, False])
STREAMED = pytest.mark.parametrize("streamed", [False, True])
TEXT = "Grüße, Welt 🌍"
COUNTS = {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    """The vendors by the names that the suite knows, at another address."""
    given = {"base_url": f"{server.url}/v1", "api_key": KEY, "timeouts": SHORT}
    configured = {name: ProviderSettings.model_validate(given) for name in VENDORS}
    async with running_providers(**configured) as client:
        yield client


def attempt(vendor: str, raw: bool = True) -> pb.Attempt:
    if raw:
        return openai_shaped(vendor, {**BODY, "stream": True})
    chat_input = ChatInput(messages=[Message(role="user", content="hi")])
    return pb.Attempt(provider=vendor, model="real-model", chat=chat_input)


async def broken_stream(client: ProviderService, asked: pb.Attempt) -> tuple[list[Any], RpcError]:
    messages = []

    async def read() -> None:
        async for message in client.stream_chat(pb.StreamChatRequest(attempt=asked), Call.internal(30)):
            messages.append(message)

    with pytest.raises(RpcError) as caught:
        await read()
    assert not any(message.HasField("end") for message in messages)
    return messages, caught.value


@pytest.mark.parametrize("adapter", VENDORS)
async def test_ids_of_calls_without_one_are_new_in_each_answer(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    """Clients match results to calls by id, through all turns of a conversation."""
    calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}} for _ in range(2)]
    choice = {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": calls}}
    whole = {"id": "c", "model": "x", "choices": [{**choice, "finish_reason": "tool_calls"}], "usage": COUNTS}
    pieces = [{"index": index, **call} for index, call in enumerate(calls)]
    delta = {"index": 0, "delta": {"tool_calls": pieces}, "finish_reason": "tool_calls"}
    chunk = {"id": "c", "model": "x", "choices": [delta], "usage": COUNTS}
    ids = []
    for _ in range(2):
        server.script = answer(whole)
        message = (await chat(client, attempt(adapter, raw=False))).message
        ids += [part.tool_call.id for part in message.parts if part.tool_call.id_synthesised]
        server.script = stream(sse(chunk, b"[DONE]"))
        events = await stream_chat(client, attempt(adapter, raw=False))
        starts = [event.part_start.part for event in events if event.HasField("part_start")]
        ids += [part.tool_call.id for part in starts if part.tool_call.id_synthesised]
    assert len(ids) == len(set(ids)) == 8
    assert all(len(identifier) <= 40 for identifier in ids)


@pytest.mark.parametrize("adapter", cells(1, *VENDORS))
async def test_extra_fields_travel_on(server: FaultServer, client: ProviderService, adapter: str) -> None:
    extras = {
        "groq": {"x_groq": {"id": "req_1"}, "usage_breakdown": None, "service_tier": "on_demand"},
        "huggingface": {"kv_transfer_params": None, "prompt_logprobs": None},
        "openrouter": {"provider": "Someone", "native_finish_reason": "STOP"},
    }[adapter]
    document = {**wire.OPENAI_ANSWER, **extras}
    server.script = answer(document)
    response = await chat(client, openai_shaped(adapter, BODY))
    assert json.loads(response.raw_body) == document
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("adapter", cells(13, "huggingface"))
@RAW
async def test_cached_tokens_at_the_top_of_the_usage(
    server: FaultServer, client: ProviderService, adapter: str, raw: bool
) -> None:
    usage = {**COUNTS, "cached_tokens": 12}
    server.script = answer({**wire.OPENAI_ANSWER, "usage": usage})
    response = await chat(client, attempt(adapter, raw))
    assert (response.usage.input_total, response.usage.cache_read) == (20, 12)
    server.script = stream(wire.openai_stream([*wire.OPENAI_TEXT[:4], wire.openai_chunk(usage=usage)]))
    end = (await stream_chat(client, attempt(adapter, raw)))[-1].end
    assert (end.usage.input_total, end.usage.cache_read, end.usage.output_total) == (20, 12, 9)


@pytest.mark.parametrize("adapter", cells(24, "huggingface"))
@STREAMED
async def test_a_cold_model_says_how_long(
    server: FaultServer, client: ProviderService, adapter: str, streamed: bool
) -> None:
    server.script = answer({"error": "Model x is currently loading", "estimated_time": 20.5}, 503)
    with pytest.raises(RpcError) as caught:
        await (stream_chat if streamed else chat)(client, attempt(adapter))
    assert (caught.value.reason, caught.value.retry_after_s) == ("PROVIDER_OVERLOADED", 20.5)
    assert caught.value.metadata["retryable"] == "true"
    assert server.injected["status_503"] == 1


@pytest.mark.parametrize("adapter", cells(22, "huggingface"))
async def test_no_credits(server: FaultServer, client: ProviderService, adapter: str) -> None:
    server.script = answer({"error": "You have exceeded your monthly included credits"}, 402)
    with pytest.raises(RpcError) as caught:
        await chat(client, attempt(adapter))
    assert (caught.value.reason, caught.value.metadata["retryable"]) == ("PROVIDER_BILLING", "false")
    assert server.injected["status_402"] == 1


COST = {
    **wire.OPENAI_USAGE,
    "cost": 1.5e-05,
    "is_byok": False,
    "cost_details": {"upstream_inference_cost": None},
}
TWICE = [
    *wire.OPENAI_TEXT[:3],
    wire.openai_chunk({"content": ""}, "stop"),
    wire.openai_chunk({"content": ""}, "stop", usage=COST),
]


@pytest.mark.parametrize("adapter", [*cells(14, "openrouter"), *cells(17, "openrouter")])
@RAW
async def test_a_finish_that_comes_twice_is_one_with_its_cost(
    server: FaultServer, client: ProviderService, adapter: str, raw: bool
) -> None:
    server.script = stream(wire.openai_stream(TWICE))
    messages = await stream_chat(client, attempt(adapter, raw))
    assert text_of(messages) == TEXT
    ends = [message.end for message in messages if message.HasField("end")]
    assert len(ends) == 1
    assert ends[0].finish.reason == "stop"
    assert ends[0].usage.provider_cost == "0.000015"
    assert (ends[0].usage.input_total, ends[0].usage.output_total) == (20, 9)


@pytest.mark.parametrize("adapter", cells(18, "openrouter"))
@RAW
async def test_keep_alive_comments_before_and_between_frames(
    server: FaultServer, client: ProviderService, adapter: str, raw: bool
) -> None:
    comment = b": OPENROUTER PROCESSING\n\n"
    frames = [comment + sse(chunk) for chunk in wire.OPENAI_TEXT]
    server.script = stream(comment, *frames, comment, b"data: [DONE]\n\n")
    messages = await stream_chat(client, attempt(adapter, raw))
    assert text_of(messages) == TEXT
    assert messages[-1].end.finish.reason == "stop"
    # They are no token: the clock of the first one runs on.
    server.script = [Head(content_type="text/event-stream"), Endless(comment, 0.02)]
    _, error = await broken_stream(client, attempt(adapter, raw))
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_TIMEOUT", "before_first_byte")
    assert "first token" in error.message
    assert server.injected["endless"] == 1


@pytest.mark.parametrize("adapter", cells(18, "openrouter"))
async def test_a_frame_without_a_token_does_not_stop_the_clock_either(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    first = sse(wire.openai_chunk({"role": "assistant", "content": ""}))
    server.script = [*stream(first), Endless(b": OPENROUTER PROCESSING\n\n", 0.02)]
    _, error = await broken_stream(client, attempt(adapter))
    assert error.reason == "PROVIDER_TIMEOUT"
    assert "first token" in error.message
    assert server.injected["endless"] == 1


def refused(code: int, message: str, **metadata: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "metadata": metadata}, "user_id": "user_1"}


OPENROUTER_ERRORS = [
    (401, "No auth credentials found", {}, "PROVIDER_CREDENTIAL_REFUSED"),
    (402, "Insufficient credits", {}, "PROVIDER_BILLING"),
    (403, "Input flagged", {"reasons": ["violence"], "flagged_input": "x"}, "CONTENT_FILTERED"),
    (408, "Timed out", {}, "PROVIDER_TIMEOUT"),
    (429, "Rate limited", {"provider_name": "Someone", "raw": "slow"}, "PROVIDER_RATE_LIMITED"),
    (502, "Provider returned error", {"provider_name": "Someone"}, "PROVIDER_FAILED"),
    (503, "No provider available", {}, "PROVIDER_OVERLOADED"),
]


@pytest.mark.parametrize("adapter", [*cells(33, "openrouter"), *cells(34, "openrouter")])
@pytest.mark.parametrize(("code", "message", "metadata", "reason"), OPENROUTER_ERRORS)
@pytest.mark.parametrize("place", ["status", "body", "first frame", "later frame"])
async def test_an_error_by_its_number_wherever_it_comes(
    server: FaultServer,
    client: ProviderService,
    adapter: str,
    code: int,
    message: str,
    metadata: dict[str, Any],
    reason: str,
    place: str,
) -> None:
    body = refused(code, message, **metadata)
    scripts = {
        "status": answer(body, code),
        "body": answer(body),
        "first frame": stream(sse({**wire.openai_chunk({"content": ""}, "error"), **body})),
        "later frame": stream(sse(*wire.OPENAI_TEXT[:3], {**wire.openai_chunk(), **body})),
    }
    server.script = scripts[place]
    if "frame" in place:
        messages, error = await broken_stream(client, attempt(adapter))
        assert text_of(messages) == (TEXT if place == "later frame" else "")
    else:
        with pytest.raises(RpcError) as caught:
            await chat(client, attempt(adapter))
        error = caught.value
    assert error.reason == reason
    assert error.metadata["http_status"] == str(code)
    assert error.metadata["phase"] == ("mid_stream" if place == "later frame" else "before_first_byte")
    assert len(server.requests) == 1


TOOL_USE_FAILED = {
    "error": {
        "message": "Failed to call a function.",
        "type": "invalid_request_error",
        "code": "tool_use_failed",
        "failed_generation": "<function=f>",
        "status_code": 400,
    }
}


@pytest.mark.parametrize("adapter", cells(33, "groq"))
@RAW
async def test_an_error_event_in_mid_stream(
    server: FaultServer, client: ProviderService, adapter: str, raw: bool
) -> None:
    first = {"x_groq": {"id": "req_1"}, **wire.OPENAI_TEXT[0]}
    server.script = stream(sse(first, *wire.OPENAI_TEXT[1:3]), b"event: error\n" + sse(TOOL_USE_FAILED))
    messages, error = await broken_stream(client, attempt(adapter, raw))
    assert text_of(messages) == TEXT
    assert (error.reason, error.metadata["phase"]) == ("PROVIDER_REJECTED", "mid_stream")
    assert error.metadata["provider_code"] == "tool_use_failed"
    assert error.metadata["http_status"] == "400"


@pytest.mark.parametrize("adapter", cells(13, "groq"))
@RAW
async def test_usage_in_the_vendors_own_object(
    server: FaultServer, client: ProviderService, adapter: str, raw: bool
) -> None:
    usage = {**COUNTS, "queue_time": 0.01, "total_time": 0.1}
    last = wire.openai_chunk({}, "stop", x_groq={"id": "req_1", "usage": usage})
    first = wire.openai_chunk({"content": TEXT, "channel": "final"}, x_groq={"id": "req_1"})
    server.script = stream(wire.openai_stream([first, last]))
    messages = await stream_chat(client, attempt(adapter, raw))
    assert text_of(messages) == TEXT
    end = messages[-1].end
    assert (end.usage.input_total, end.usage.output_total, end.usage.estimated) == (20, 9, False)


@pytest.mark.parametrize("adapter", cells(24, "groq"))
async def test_no_capacity(server: FaultServer, client: ProviderService, adapter: str) -> None:
    server.script = answer({"error": {"message": "capacity", "type": "x"}}, 498, {"retry-after": "2"})
    with pytest.raises(RpcError) as caught:
        await chat(client, attempt(adapter))
    assert (caught.value.reason, caught.value.retry_after_s) == ("PROVIDER_OVERLOADED", 2)
    assert caught.value.metadata["retryable"] == "true"
    assert server.injected["status_498"] == 1


@pytest.mark.parametrize("adapter", cells(16, *VENDORS))
@RAW
async def test_a_finish_that_nobody_knows(
    server: FaultServer, client: ProviderService, adapter: str, raw: bool
) -> None:
    server.script = stream(wire.openai_stream([*wire.OPENAI_TEXT[:3], wire.openai_chunk({}, "surprise")]))
    end = (await stream_chat(client, attempt(adapter, raw)))[-1].end
    assert (end.finish.reason, end.finish.raw) == ("unknown", "surprise")


async def test_ollamas_openai_shaped_api_is_still_spoken(server: FaultServer) -> None:
    given = {"adapter": "openai", "base_url": f"{server.url}/v1"}
    server.script = answer(wire.OPENAI_ANSWER)
    async with running_providers(ollama=ProviderSettings.model_validate(given)) as client:
        await chat(client, openai_shaped("ollama", BODY))
    assert server.requests[0].path == "/v1/chat/completions"
    assert "Authorization" not in server.requests[0].headers


async def test_health_is_asked_where_the_credential_counts(
    server: FaultServer, client: ProviderService
) -> None:
    """OpenRouter lists its models for anybody, so that a listing tells nothing about the key."""
    listing, about = "/v1/models", "/v1/key"
    server.scripts = {listing: answer({"data": [{"id": "m"}]}), about: answer({"data": {"label": "k"}})}
    for name, path in (("openrouter", about), ("groq", listing)):
        server.requests.clear()
        health = await client.check_health(pb.CheckHealthRequest(provider=name), Call.internal(5))
        assert health.healthy
        assert [(asked.method, asked.path) for asked in server.requests] == [("GET", path)]
        assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    server.scripts[about] = answer({"error": {"code": 401, "message": f"User not found. {KEY}"}}, 401)
    health = await client.check_health(pb.CheckHealthRequest(provider="openrouter"), Call.internal(5))
    assert health.detail.startswith("PROVIDER_CREDENTIAL_REFUSED: openrouter: User not found. ***")
    assert server.injected["status_401"] == 1
