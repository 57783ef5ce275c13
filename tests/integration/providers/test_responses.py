"""Responses: passed on to a server that has them, translated for all others, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Message, WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.formats import openai_responses
from services.formats.answers import Event
from tests.support import wire
from tests.support.fault_server import Disconnect, FaultServer, answer, running_fault_server, sse, stream
from tests.support.providers import KEY, chat, running_providers, settings, stream_chat, text_of

RESPONSES = WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
TEXT = "Grüße, Welt 🌍"
THOUGHT = {"type": "reasoning", "id": "rs_0", "summary": [], "encrypted_content": "Z0FBQUFB"}
SEALED = {**THOUGHT, "encrypted_content": "omnihub.signature.c2ln"}
BODY: dict[str, Any] = {
    "model": "m",
    "input": [{"role": "user", "content": "hi"}, THOUGHT],
    "previous_response_id": "resp_0",
    "store": True,
    "vendor_x": {"a": 1.50},
}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    plain = settings("openai", server.url)
    configured = {
        "openai": plain.model_copy(update={"responses": True}),
        "plain": plain,
        "anthropic": settings("anthropic", server.url),
    }
    async with running_providers(**configured) as client:
        yield client


def attempt(body: dict[str, Any], provider: str = "openai", **fields: Any) -> pb.Attempt:
    raw = json.dumps(body).encode()
    return pb.Attempt(provider=provider, model="real-model", raw_body=raw, wire_format=RESPONSES, **fields)


async def failed(client: ProviderService, asked: pb.Attempt, streamed: bool) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await (stream_chat if streamed else chat)(client, asked)
    return caught.value


@pytest.mark.matrix(row=1, adapter="openai_responses")
@pytest.mark.matrix(row=2, adapter="openai_responses")
async def test_the_openai_client_accepts_the_fake(server: FaultServer) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as sdk:
        server.script = answer(wire.openai_response())
        assert (await sdk.responses.create(model="m", input="hi")).output_text == TEXT
        server.script = stream(wire.responses_stream())
        async with sdk.responses.stream(model="m", input="hi") as events:
            final = await events.get_final_response()
        assert final.output_text == TEXT
        assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]


async def test_capabilities_say_who_has_responses(client: ProviderService) -> None:
    answered = await client.get_capabilities(pb.GetCapabilitiesRequest(), Call.internal(5))
    assert [each.provider for each in answered.providers if RESPONSES in each.wire_formats] == ["openai"]


async def test_a_body_goes_through_unchanged(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire.openai_response(), headers={"x-request-id": "req_vendor"})
    response = await chat(client, attempt(BODY, output_cap=77))
    sent = server.requests[0]
    assert sent.path == "/v1/responses"
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert sent.json() == {**BODY, "model": "real-model", "max_output_tokens": 77}
    assert json.loads(response.raw_body) == wire.openai_response()
    assert (response.model, response.response_id) == ("gpt-x-2026", "resp_1")
    assert response.finish.reason == "tool_calls"
    changed = [(r.name, r.outcome) for r in response.receipt if r.outcome != "forwarded"]
    assert changed == [("model", "translated"), ("max_output_tokens", "added")]
    assert {r.name for r in response.receipt} == {*BODY, "max_output_tokens"}
    usage = response.usage
    assert (usage.input_total, usage.cache_read, usage.output_total, usage.output_reasoning) == (20, 5, 9, 4)


@pytest.mark.parametrize("size", [1, 7, 61, 10**6])
async def test_a_stream_goes_through(server: FaultServer, client: ProviderService, size: int) -> None:
    whole = wire.responses_stream()
    server.script = stream(*(whole[i : i + size] for i in range(0, len(whole), size)))
    start, *frames, end = await stream_chat(client, attempt({**BODY, "stream": True}))
    assert (start.start.wire_format, start.start.response_id) == (RESPONSES, "resp_1")
    assert text_of(frames) == TEXT
    passed = b"".join(frame.raw_frame.data for frame in frames)
    assert passed + openai_responses.close_raw_stream(end.end.raw_tail) == whole
    assert (end.end.finish.reason, end.end.usage.output_reasoning) == ("tool_calls", 4)
    last = openai_responses.close_raw_stream(end.end.raw_tail, {"cost": "0.1"})
    document = json.loads(last.split(b"data: ")[1])
    assert document["response"] == {**wire.openai_response(), "omnihub": {"cost": "0.1"}}


def typed(reader: openai_responses.StreamReader) -> list[Event]:
    events: list[Event] = []
    for document in wire.RESPONSES_EVENTS:
        events += reader.read(b"", json.dumps(document).encode())
    return events + reader.finish()


def test_a_stream_read_into_typed_events_is_written_as_the_same_answer() -> None:
    reader = openai_responses.StreamReader()
    events = typed(reader)
    writer = openai_responses.StreamWriter("m", "resp_1", 7, True)
    written = writer.start()
    for event in events:
        name = {"PartStart": "part_start", "PartDelta": "part_delta", "PartStop": "part_stop"}
        written += getattr(writer, name[type(event).__name__])(event)
    assert reader.progress.finish is not None
    assert reader.progress.usage is not None
    written += writer.finish(reader.progress.finish, reader.progress.usage)
    last = json.loads(written.rsplit(b"data: ", 1)[1])["response"]
    thought, said, call = last["output"]
    assert said["content"][0]["text"] == TEXT
    assert (call["call_id"], call["arguments"]) == ("call_a", '{"x": 1.0}')
    assert last["usage"] == wire.RESPONSES_USAGE
    assert thought["type"] == "reasoning"


FAILURE = {"code": "server_is_overloaded", "message": "try later"}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (
            {"type": "response.failed", "response": wire.openai_response("failed", error=FAILURE)},
            "OVERLOADED",
        ),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "slow", "param": None}, "RATE_LIMITED"),
        ({"type": "error", "error": {"type": "x", "code": "insufficient_quota", "message": "m"}}, "BILLING"),
        ({"type": "response.failed", "response": wire.openai_response("failed")}, "FAILED"),
    ],
)
@pytest.mark.parametrize("begun", [2, 7])
async def test_a_stream_that_fails(
    server: FaultServer, client: ProviderService, event: dict[str, Any], reason: str, begun: int
) -> None:
    """What fails before its first item can still be asked of another provider: nothing has been passed on."""
    server.script = stream(sse(*wire.RESPONSES_EVENTS[:begun], event, event=True))
    error = await failed(client, attempt(BODY), streamed=True)
    assert error.reason == f"PROVIDER_{reason}"
    assert error.metadata["phase"] == ("before_first_byte" if begun == 2 else "mid_stream")


@pytest.mark.parametrize("count", range(1, len(wire.RESPONSES_EVENTS)))
@pytest.mark.parametrize("cut", [False, True])
async def test_a_stream_without_its_end_is_no_answer(
    server: FaultServer, client: ProviderService, count: int, cut: bool
) -> None:
    script = stream(sse(*wire.RESPONSES_EVENTS[:count], event=True))
    server.script = [*script, Disconnect()] if cut else script
    error = await failed(client, attempt(BODY), streamed=True)
    # A connection that is cut takes with it what was sent and not yet read.
    cuts = {"PROVIDER_FAILED", "PROVIDER_PROTOCOL", "STREAM_TRUNCATED"}
    assert error.reason in (cuts if cut else {"STREAM_TRUNCATED"})
    assert server.injected["disconnect"] == cut


async def test_a_failed_response_is_no_answer(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire.openai_response("failed", error=FAILURE))
    assert (await failed(client, attempt(BODY), streamed=False)).reason == "PROVIDER_OVERLOADED"
    server.script = answer(wire.openai_response("failed"))
    assert (await failed(client, attempt(BODY), streamed=False)).reason == "PROVIDER_PROTOCOL"


async def test_a_background_response_is_counted_with_all_it_may_become(
    server: FaultServer, client: ProviderService
) -> None:
    server.script = answer(wire.openai_response("queued", background=True))
    response = await chat(client, attempt({**BODY, "background": True, "max_output_tokens": 500}))
    assert (response.usage.output_total, response.usage.estimated) == (500, True)
    assert response.finish.raw == "queued"


async def test_thoughts_of_other_vendors_stay_behind(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire.openai_response())
    user = {"role": "user", "content": '"omnihub.signature.'}
    response = await chat(client, attempt({**BODY, "input": [THOUGHT, SEALED, user]}))
    assert server.requests[0].json()["input"] == [THOUGHT, user]
    changed = [(r.name, r.outcome) for r in response.receipt if r.outcome != "forwarded"]
    assert changed == [("model", "translated"), ("input[1]", "dropped")]


PORTABLE: dict[str, Any] = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {"role": "user", "content": "weather"},
        SEALED,
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1.0}', "id": "fc_1"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "20"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "21"}]},
    ],
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
    "reasoning": {"effort": "low"},
    "max_output_tokens": 50,
    "metadata": {"k": "v"},
    "include": ["reasoning.encrypted_content"],
    "store": False,
}


async def test_a_body_is_translated_to_a_chat(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire.OPENAI_ANSWER)
    response = await chat(client, attempt(PORTABLE, "plain"))
    sent = server.requests[0]
    assert sent.path == "/v1/chat/completions"
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1.0}'}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    assert sent.json() == {
        "model": "real-model",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "weather"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": "20"},
            {"role": "tool", "tool_call_id": "c2", "content": "21"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
            }
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
        },
        "reasoning_effort": "low",
        "max_tokens": 50,
        "metadata": {"k": "v"},
    }
    outcomes = {(r.name, r.outcome) for r in response.receipt}
    assert ("store", "translated") in outcomes
    assert ("messages[2].parts[0]", "dropped") in outcomes


async def test_thoughts_go_back_to_the_vendor_that_signed_them(
    server: FaultServer, client: ProviderService
) -> None:
    """A client returns the items of an answer as it got them."""
    server.script = answer(wire.ANTHROPIC_ANSWER)
    asked = {"model": "m", "input": "weather", "max_output_tokens": 5000}
    first = await chat(client, attempt(asked, "anthropic"))
    written = openai_responses.write_response(
        first.message, first.finish, first.usage, first.response_id, "m", 7
    )
    output = json.loads(written)["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
    results = {"type": "function_call_output", "call_id": "toolu_1", "output": "20"}
    await chat(
        client,
        attempt({**asked, "input": [{"role": "user", "content": "hi"}, *output, results]}, "anthropic"),
    )
    turn = server.requests[1].json()["messages"][1]
    blocks = [{k: v for k, v in block.items() if k != "citations"} for block in turn["content"]]
    assert blocks == wire.ANTHROPIC_ANSWER["content"]


@pytest.mark.parametrize("provider", ["plain", "anthropic"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("state", "field"),
    [
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
        ({"conversation": {"id": "conv_0"}}, "conversation"),
        ({"prompt": {"id": "pmpt_0"}}, "prompt"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input"),
    ],
)
async def test_state_is_refused_where_there_is_none(
    server: FaultServer,
    client: ProviderService,
    provider: str,
    streamed: bool,
    state: dict[str, Any],
    field: str,
) -> None:
    error = await failed(client, attempt({"model": "m", "input": "hi", **state}, provider), streamed)
    assert error.reason == "PARAMETER_UNSUPPORTED"
    assert [violation.field for violation in error.violations] == [field]
    assert server.requests == []


async def test_strict_refuses_what_cannot_be_translated(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire.OPENAI_ANSWER)
    plain = {
        "model": "m",
        "instructions": "Be brief.",
        "input": "hi",
        "store": False,
        "background": False,
        "truncation": "disabled",
        "include": ["reasoning.encrypted_content"],
        "text": {"format": {"type": "text"}},
        "reasoning": {"effort": None, "summary": None},
        "previous_response_id": None,
        "max_output_tokens": 50,
    }
    await chat(client, attempt(plain, "plain", strict=True))
    web = {**plain, "tools": [{"type": "web_search"}]}
    error = await failed(client, attempt(web, "plain", strict=True), streamed=False)
    assert error.reason == "PARAMETER_UNSUPPORTED"
    assert "web_search" in error.message


@pytest.mark.parametrize("raw", [False, True])
async def test_tokens_are_counted_by_the_vendor(
    server: FaultServer, client: ProviderService, raw: bool
) -> None:
    server.script = answer({"input_tokens": 42})
    body = {"model": "m", "max_tokens": 5, "temperature": 1, "messages": [{"role": "user", "content": "hi"}]}
    asked = pb.Attempt(provider="anthropic", model="real-model")
    if raw:
        asked.raw_body, asked.wire_format = (
            json.dumps(body).encode(),
            WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES,
        )
    else:
        asked.chat.CopyFrom(ChatInput(messages=[Message(role="user", content="hi")]))
    counted = await client.count_tokens(pb.CountTokensRequest(attempt=asked), Call.internal(5))
    assert (counted.input_tokens, counted.estimated) == (42, False)
    [sent] = server.requests
    assert sent.path == "/v1/messages/count_tokens"
    assert sent.json() == {"model": "real-model", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("answered", [{"input_tokens": -1}, {"input_tokens": "x"}, {}])
async def test_a_count_that_is_none(
    server: FaultServer, client: ProviderService, answered: dict[str, Any]
) -> None:
    server.script = answer(answered)
    asked = pb.Attempt(provider="anthropic", model="m", chat=ChatInput(messages=[Message(role="user")]))
    with pytest.raises(RpcError, match="PROVIDER_PROTOCOL"):
        await client.count_tokens(pb.CountTokensRequest(attempt=asked), Call.internal(5))


async def test_tokens_are_estimated_elsewhere(server: FaultServer, client: ProviderService) -> None:
    text = "word " * 400
    asked = pb.Attempt(
        provider="plain", model="m", chat=ChatInput(messages=[Message(role="user", content=text)])
    )
    counted = await client.count_tokens(pb.CountTokensRequest(attempt=asked), Call.internal(5))
    assert counted.estimated
    assert 400 <= counted.input_tokens <= 600
    image = asked.chat.messages[0].parts.add().image
    image.data = bytes(10**6)
    with_image = await client.count_tokens(pb.CountTokensRequest(attempt=asked), Call.internal(5))
    assert counted.input_tokens < with_image.input_tokens < 10_000
    assert server.requests == []
