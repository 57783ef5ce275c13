"""Good answers: the official clients accept the fake, and our adapters read the same from it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import anthropic
import openai
import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call
from services.formats import anthropic_messages, openai_chat
from tests.support import wire
from tests.support.fault_server import FaultServer, answer, running_fault_server, stream
from tests.support.providers import KEY, chat, running_providers, settings, stream_chat, text_of

OPENAI = WireFormat.WIRE_FORMAT_OPENAI_CHAT
ANTHROPIC = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
TEXT = "Grüße, Welt 🌍"
OPENAI_BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "vendor_x": {"a": 1.50}}
ANTHROPIC_BODY = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    configured = {name: settings(name, server.url) for name in ("openai", "anthropic")}
    async with running_providers(**configured) as client:
        yield client


def raw(body: dict, wire_format: WireFormat.ValueType, **fields: object) -> pb.Attempt:
    return pb.Attempt(
        provider="openai" if wire_format == OPENAI else "anthropic",
        model="real-model",
        raw_body=json.dumps(body).encode(),
        wire_format=wire_format,
        **fields,
    )


def typed(provider: str, **fields: object) -> pb.Attempt:
    chat_input = ChatInput(messages=[Message(role="user", content="hi")], max_tokens=50)
    return pb.Attempt(provider=provider, model="real-model", chat=chat_input, **fields)


@pytest.mark.matrix(row=1, adapter="openai")
@pytest.mark.matrix(row=2, adapter="openai")
async def test_the_openai_client_accepts_the_fake(server: FaultServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as sdk:
        server.script = answer(wire.OPENAI_ANSWER)
        completion = await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}]
        )
        assert completion.choices[0].message.content == TEXT
        server.script = stream(wire.openai_stream())
        chunks = await sdk.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices]) == TEXT


@pytest.mark.matrix(row=1, adapter="anthropic")
@pytest.mark.matrix(row=2, adapter="anthropic")
async def test_the_anthropic_client_accepts_the_fake(server: FaultServer) -> None:
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="k", max_retries=0) as sdk:
        server.script = answer(wire.ANTHROPIC_ANSWER)
        message = await sdk.messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        )
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
        server.script = stream(wire.anthropic_stream())
        async with sdk.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        ) as events:
            streamed = await events.get_final_message()
        assert streamed.content[1].text == TEXT
        assert streamed.content[2].input == {"x": 1.0}


async def test_an_openai_body_goes_through_unchanged(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire.OPENAI_ANSWER, headers={"x-request-id": "req_vendor"})
    response = await chat(client, raw(OPENAI_BODY, OPENAI, output_cap=77))
    sent = server.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert sent.json() == {**OPENAI_BODY, "model": "real-model", "max_completion_tokens": 77}
    assert b'{"a": 1.5}' in sent.body  # not one byte inside a value is touched
    assert json.loads(response.raw_body) == wire.OPENAI_ANSWER
    assert (response.model, response.response_id) == ("gpt-x-2026", "chatcmpl-1")
    assert response.provider_request_id == "req_vendor"
    assert response.finish.reason == "stop"
    changed = [(r.name, r.outcome) for r in response.receipt if r.outcome != "forwarded"]
    assert changed == [
        ("model", "translated"),
        ("max_completion_tokens", "added"),
    ]
    usage = response.usage
    assert (usage.input_total, usage.cache_read, usage.output_total, usage.output_reasoning) == (20, 5, 9, 4)
    assert not usage.estimated


async def test_a_limit_of_the_caller_is_kept(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire.OPENAI_ANSWER)
    await chat(client, raw({**OPENAI_BODY, "max_completion_tokens": 5}, OPENAI, output_cap=77))
    assert server.requests[0].json() == {**OPENAI_BODY, "model": "real-model", "max_completion_tokens": 5}


@pytest.mark.parametrize("size", [1, 7, 61, 10**6])
@pytest.mark.parametrize("include_usage", [True, False])
async def test_an_openai_stream_goes_through(
    server: FaultServer, client: ProviderService, size: int, include_usage: bool
) -> None:
    whole = wire.openai_stream()
    server.script = stream(*(whole[i : i + size] for i in range(0, len(whole), size)))
    attempt = raw({**OPENAI_BODY, "stream": True}, OPENAI, include_usage=include_usage)
    messages = await stream_chat(client, attempt)
    assert server.requests[0].json()["stream_options"] == {"include_usage": True}
    start, *frames, end = messages
    assert start.start.wire_format == OPENAI
    assert start.start.model == "gpt-x-2026"
    assert text_of(frames) == TEXT
    assert end.end.finish.reason == "stop"
    assert end.end.usage.input_total == 20
    tail = [json.loads(document) for document in end.end.raw_tail]
    assert tail == wire.OPENAI_TEXT[3 : 5 if include_usage else 4]
    closed = openai_chat.close_raw_stream(end.end.raw_tail, {"cost": "1"})
    passed = b"".join(frame.raw_frame.data for frame in frames) + closed
    documents = [json.loads(frame[6:]) for frame in passed.split(b"\n\n")[:-2]]
    assert documents[3].pop("omnihub") == {"cost": "1"}
    assert documents == wire.OPENAI_TEXT[: 5 if include_usage else 4]
    assert passed.endswith(b"\n\ndata: [DONE]\n\n")


@pytest.mark.parametrize("size", [1, 7, 61, 10**6])
async def test_an_anthropic_stream_goes_through(
    server: FaultServer, client: ProviderService, size: int
) -> None:
    whole = wire.anthropic_stream()
    server.script = stream(*(whole[i : i + size] for i in range(0, len(whole), size)))
    attempt = raw(
        {**ANTHROPIC_BODY, "stream": True}, ANTHROPIC, headers={"anthropic-beta": "b1", "x-evil": "1"}
    )
    start, *frames, end = await stream_chat(client, attempt)
    sent = server.requests[0]
    assert sent.path == "/v1/messages"
    assert sent.headers["x-api-key"] == KEY
    assert sent.headers["anthropic-version"] == "2023-06-01"
    assert sent.headers["anthropic-beta"] == "b1"
    assert "x-evil" not in sent.headers
    assert start.start.response_id == "msg_1"
    assert text_of(frames) == TEXT
    assert end.end.finish.reason == "tool_calls"
    assert (end.end.usage.input_total, end.end.usage.output_total) == (20, 9)
    closed = anthropic_messages.close_raw_stream(end.end.raw_tail, {"cost": "1"})
    passed = b"".join(frame.raw_frame.data for frame in frames) + closed
    documents = [json.loads(frame.split(b"data: ")[1]) for frame in passed.split(b"\n\n")[:-1]]
    assert documents[-2].pop("omnihub") == {"cost": "1"}
    assert documents == wire.ANTHROPIC_EVENTS


async def test_an_anthropic_body_goes_through_unchanged(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire.ANTHROPIC_ANSWER)
    response = await chat(client, raw({**ANTHROPIC_BODY, "vendor_x": 1}, ANTHROPIC))
    assert server.requests[0].json() == {**ANTHROPIC_BODY, "model": "real-model", "vendor_x": 1}
    assert json.loads(response.raw_body) == wire.ANTHROPIC_ANSWER
    usage = response.usage
    assert (usage.input_total, usage.cache_read, usage.cache_write) == (20, 5, 5)
    assert usage.cache_write_1h == 2


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_typed_stream_equals_typed_answer(
    server: FaultServer, client: ProviderService, provider: str
) -> None:
    whole = wire.openai_stream() if provider == "openai" else wire.anthropic_stream()
    server.script = answer(wire.OPENAI_ANSWER if provider == "openai" else wire.ANTHROPIC_ANSWER)
    unary = await chat(client, typed(provider))
    server.script = stream(whole)
    start, *events, end = await stream_chat(client, typed(provider))
    assert not start.start.wire_format
    assert start.start.model == unary.model
    parts = list(unary.message.parts)
    text = "".join(part.text.text for part in parts) or unary.message.content
    assert text_of([event for event in events if event.part_delta.text]) == text == TEXT
    arguments = "".join(event.part_delta.arguments_json for event in events)
    assert json.loads(arguments or "{}") == json.loads(
        next((part.tool_call.arguments_json for part in parts if part.HasField("tool_call")), "{}")
    )
    assert end.end.finish == unary.finish
    assert end.end.usage.input_total == unary.usage.input_total
    assert end.end.usage.output_total == unary.usage.output_total
    starts = [event.part_start.index for event in events if event.HasField("part_start")]
    stops = [event.part_stop.index for event in events if event.HasField("part_stop")]
    assert sorted(starts) == sorted(stops)


async def test_parallel_tool_calls_keep_order_ids_and_raw_arguments(
    server: FaultServer, client: ProviderService
) -> None:
    server.script = stream(wire.openai_stream(wire.OPENAI_TOOLS))
    messages = await stream_chat(client, typed("openai"))
    calls: dict[int, list[str]] = {}
    for message in messages:
        if message.HasField("part_start"):
            call = message.part_start.part.tool_call
            calls[message.part_start.index] = [call.id, call.name, ""]
        elif message.HasField("part_delta"):
            calls[message.part_delta.index][2] += message.part_delta.arguments_json
    assert list(calls.values()) == [["call_a", "f", '{"x": 1.0}'], ["call_b", "g", "{}"]]
    assert messages[-1].end.finish.reason == "tool_calls"


async def test_openai_bodies_are_translated_for_anthropic(
    server: FaultServer, client: ProviderService
) -> None:
    server.script = answer(wire.ANTHROPIC_ANSWER)
    attempt = raw({**OPENAI_BODY, "temperature": 1.7}, OPENAI)
    attempt.provider = "anthropic"
    response = await chat(client, attempt)
    assert not response.HasField("raw_body")
    receipt = {entry.name: entry.outcome for entry in response.receipt}
    assert receipt["temperature"] == "clamped"
    assert receipt["max_tokens"] == "added"
    assert receipt["vendor_x"] == "dropped"
    written = openai_chat.write_response(
        response.message, response.finish, response.usage, response.response_id, response.model, 1
    )
    completion = openai.types.chat.ChatCompletion.model_validate_json(written, strict=True)
    choice = completion.choices[0]
    assert choice.message.content == TEXT
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].function.arguments == '{"x":1.0}'
    assert choice.finish_reason == "tool_calls"
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 20


async def test_strict_refuses_before_anything_is_sent(server: FaultServer, client: ProviderService) -> None:
    attempt = raw(OPENAI_BODY, OPENAI, strict=True)
    attempt.provider = "anthropic"
    with pytest.raises(Exception, match="vendor_x") as caught:
        await chat(client, attempt)
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"  # type: ignore[attr-defined]
    assert caught.value.violations[0].field == "vendor_x"  # type: ignore[attr-defined]
    assert server.requests == []


async def test_usage_that_is_not_reported_is_estimated(server: FaultServer, client: ProviderService) -> None:
    server.script = stream(wire.openai_stream(wire.OPENAI_TEXT[:4]))
    end = (await stream_chat(client, raw(OPENAI_BODY, OPENAI)))[-1].end
    assert end.usage.estimated
    assert end.usage.input_total > 0
    assert end.usage.output_total == 4  # 14 characters
    server.script = answer({key: value for key, value in wire.OPENAI_ANSWER.items() if key != "usage"})
    assert (await chat(client, raw(OPENAI_BODY, OPENAI))).usage.estimated


async def test_two_finish_chunks_are_one_finish(server: FaultServer, client: ProviderService) -> None:
    usage = {**wire.OPENAI_USAGE, "cost": 1.5e-05, "is_byok": False}
    documents = [
        *wire.OPENAI_TEXT[:3],
        wire.openai_chunk({"content": ""}, "stop"),
        wire.openai_chunk({"content": ""}, "stop", usage=usage),
    ]
    server.script = stream(b": PROCESSING\n\n", wire.openai_stream(documents))
    *_, end = await stream_chat(client, raw(OPENAI_BODY, OPENAI))
    assert end.end.finish.reason == "stop"
    assert end.end.usage.provider_cost == "0.000015"
    assert len(end.end.raw_tail) == 2


async def test_connections_are_used_again(server: FaultServer, client: ProviderService) -> None:
    server.script = stream(wire.openai_stream())
    for _ in range(3):
        await stream_chat(client, raw(OPENAI_BODY, OPENAI))
    server.script = answer(wire.OPENAI_ANSWER)
    await chat(client, raw(OPENAI_BODY, OPENAI))
    assert len({request.connection for request in server.requests}) == 1


async def test_gzip_and_large_bodies(server: FaultServer, client: ProviderService) -> None:
    import gzip

    server.script = answer(
        gzip.compress(json.dumps(wire.OPENAI_ANSWER).encode()), headers={"Content-Encoding": "gzip"}
    )
    large = {**OPENAI_BODY, "messages": [{"role": "user", "content": "x" * 2**21}]}
    response = await chat(client, raw(large, OPENAI))
    assert json.loads(response.raw_body) == wire.OPENAI_ANSWER
    assert server.requests[0].json() == {**large, "model": "real-model"}


async def test_embeddings(server: FaultServer, client: ProviderService) -> None:
    answered = {
        "object": "list",
        "model": "embed-x",
        "data": [
            {"object": "embedding", "index": 1, "embedding": [0.0, 1.0]},
            {"object": "embedding", "index": 0, "embedding": "AACAPwAAAAA="},
        ],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    server.script = answer(answered)
    request = pb.EmbedRequest(provider="openai", model="e", inputs=["a", "b"], dimensions=2)
    response = await client.embed(request, Call.internal(5))
    assert [list(vector.values) for vector in response.embeddings] == [[1.0, 0.0], [0.0, 1.0]]
    assert response.usage.input_total == 4
    assert server.requests[0].path == "/v1/embeddings"
    body = b'{"model": "alias", "input": "a", "odd": 1.50}'
    response = await client.embed(
        pb.EmbedRequest(provider="openai", model="e", raw_body=body), Call.internal(5)
    )
    assert server.requests[1].body == b'{"model":"e","input":"a","odd":1.50}'
    assert json.loads(response.raw_body) == answered
    with pytest.raises(Exception, match="no embeddings") as caught:
        await client.embed(pb.EmbedRequest(provider="anthropic", model="e", inputs=["a"]), Call.internal(5))
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"  # type: ignore[attr-defined]


async def test_models_health_and_capabilities(server: FaultServer, client: ProviderService) -> None:
    server.script = answer({"object": "list", "data": [{"id": "m1", "max_model_len": 4096}]})
    listed = await client.list_models(pb.ListModelsRequest(provider="openai"), Call.internal(5))
    assert [(model.model, model.context_length) for model in listed.models] == [("m1", 4096)]
    assert (server.requests[0].method, server.requests[0].path) == ("GET", "/v1/models")
    health = await client.check_health(pb.CheckHealthRequest(provider="openai"), Call.internal(5))
    assert health.healthy
    server.script = answer({"error": {"message": f"bad key {KEY}", "code": "invalid_api_key"}}, 401)
    health = await client.check_health(pb.CheckHealthRequest(provider="anthropic"), Call.internal(5))
    assert not health.healthy
    assert health.detail.startswith("PROVIDER_CREDENTIAL_REFUSED: anthropic: bad key ***")
    capabilities = await client.get_capabilities(pb.GetCapabilitiesRequest(), Call.internal(5))
    assert [(each.provider, each.synthetic) for each in capabilities.providers] == [
        ("anthropic", False),
        ("local", True),
        ("openai", False),
    ]
    with pytest.raises(Exception, match="configured: anthropic, local, openai") as caught:
        await client.list_models(pb.ListModelsRequest(provider="nobody"), Call.internal(5))
    assert caught.value.reason == "NOT_FOUND"  # type: ignore[attr-defined]
