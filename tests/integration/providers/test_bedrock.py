"""Bedrock's good answers: its own client accepts the fake, and our adapter reads the same from it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import Message, Part, Tool
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.formats import anthropic_messages, openai_chat
from services.providers.settings import ProviderSettings
from tests.support import botocore_judge, event_stream, wire_bedrock
from tests.support.bedrock import ANTHROPIC, CLAUDE, OPENAI, TITAN, TITAN_EMBED, cell, raw, typed
from tests.support.fault_server import FaultServer, Head, Send, answer, running_fault_server
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
from tests.support.wire_bedrock import TEXT


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    async with running_providers(bedrock=settings("bedrock", server.url)) as client:
        yield client


def parts_of(messages: list[pb.StreamChatResponse]) -> list[Part]:
    """Put the parts of a stream together again."""
    parts: dict[int, Part] = {}
    for message in messages:
        match message.WhichOneof("event"):
            case "part_start":
                parts[message.part_start.index] = Part.FromString(message.part_start.part.SerializeToString())
            case "part_delta":
                part, delta = parts[message.part_delta.index], message.part_delta
                match delta.WhichOneof("delta"):
                    case "text":
                        part.text.text += delta.text
                    case "arguments_json":
                        part.tool_call.arguments_json += delta.arguments_json
                    case "reasoning":
                        part.reasoning.text += delta.reasoning
                    case "signature":
                        part.reasoning.signature += delta.signature
    return [parts[index] for index in sorted(parts)]


async def test_the_vendors_client_accepts_the_fake(server: FaultServer) -> None:
    sdk = botocore_judge.client("bedrock-runtime", server.url, REGION, KEY_ID, KEY)
    server.script = answer(wire_bedrock.ANSWER)
    asked = {"modelId": CLAUDE, "messages": [{"role": "user", "content": [{"text": "hi"}]}]}
    read = await asyncio.to_thread(lambda: sdk.converse(**asked))
    assert read["output"]["message"]["content"][2] == {"text": TEXT}
    assert read["usage"]["totalTokens"] == 29
    server.script = event_stream.event_stream(event_stream.frames(*wire_bedrock.EVENTS))
    events = await asyncio.to_thread(lambda: list(sdk.converse_stream(**asked)["stream"]))
    assert [name for event in events for name in event] == [name for name, _ in wire_bedrock.EVENTS]
    assert events[-1]["metadata"]["usage"]["cacheReadInputTokens"] == 4
    # It sends the same path as we do.
    assert server.requests[0].path == "/model/eu.anthropic.claude-x-20260101-v1%3A0/converse"


@cell(1, 13)
async def test_an_answer(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire_bedrock.ANSWER, headers={"x-amzn-RequestId": "aws-req-1"})
    response = await chat(client, typed())
    thought, hidden, text, call, other = response.message.parts
    assert (thought.reasoning.text, thought.reasoning.signature) == ("Let me see.", wire_bedrock.SIGNATURE)
    assert hidden.reasoning.redacted
    assert text.text.text == TEXT
    assert (call.tool_call.id, call.tool_call.name) == ("tooluse_1", "f")
    assert json.loads(call.tool_call.arguments_json) == {"x": 1.0}
    assert other.tool_call.arguments_json == "{}"
    assert (response.finish.reason, response.finish.raw) == ("tool_calls", "tool_use")
    assert (response.model, response.response_id, response.provider_request_id) == (
        CLAUDE,
        "aws-req-1",
        "aws-req-1",
    )
    usage = response.usage
    # totalTokens = input + output + cache read + cache write; inputTokens excludes both.
    assert usage.input_total + usage.output_total == wire_bedrock.USAGE["totalTokens"]
    assert (usage.input_total, usage.cache_read, usage.cache_write, usage.cache_write_1h) == (20, 4, 6, 2)
    assert not usage.estimated


@cell(2, 3, 5, 6)
@pytest.mark.parametrize("size", [1, 7, 61, 10**6])
async def test_a_stream_equals_an_answer(server: FaultServer, client: ProviderService, size: int) -> None:
    server.script = answer(wire_bedrock.ANSWER, headers={"x-amzn-RequestId": "aws-req-1"})
    unary = await chat(client, typed())
    whole = event_stream.frames(*wire_bedrock.EVENTS)
    server.script = event_stream.event_stream(*(whole[i : i + size] for i in range(0, len(whole), size)))
    start, *events, end = await stream_chat(client, typed())
    assert server.requests[1].path.endswith("%3A0/converse-stream")
    assert (start.start.model, start.start.response_id) == (CLAUDE, "aws-req-1")
    assert text_of(events) == TEXT
    assert end.end.finish == unary.finish
    assert end.end.usage == unary.usage
    streamed = parts_of(events)
    assert [part.WhichOneof("kind") for part in streamed] == [
        part.WhichOneof("kind") for part in unary.message.parts
    ]
    assert streamed[0].reasoning == unary.message.parts[0].reasoning
    assert streamed[1].reasoning == unary.message.parts[1].reasoning
    # Interleaved calls keep order, ids and the model's own text.
    calls = [(part.tool_call.id, part.tool_call.name, part.tool_call.arguments_json) for part in streamed[3:]]
    assert calls == [("tooluse_1", "f", '{"x": 1.0}'), ("tooluse_2", "g", "{}")]
    starts = [event.part_start.index for event in events if event.HasField("part_start")]
    stops = [event.part_stop.index for event in events if event.HasField("part_stop")]
    assert starts == sorted(stops) == [0, 1, 2, 3, 4]


@cell(8)
async def test_thoughts_go_back_as_they_came(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire_bedrock.ANSWER)
    response = await chat(client, typed())
    asked = typed()
    asked.chat.messages.append(response.message)
    results = [
        Part(tool_result={"call_id": "tooluse_1", "parts": [Part(text={"text": "1"})]}),
        Part(tool_result={"call_id": "tooluse_2", "is_error": True}),
    ]
    asked.chat.messages.append(Message(role="tool", parts=results))
    await chat(client, asked)
    sent = botocore_judge.check_request(server.requests[1].body)
    assert sent["messages"][1]["content"] == wire_bedrock.ANSWER["output"]["message"]["content"]
    # Not even their bytes change.
    assert f'"signature":"{wire_bedrock.SIGNATURE}"'.encode() in server.requests[1].body
    assert b'"input":{"x":1.0}' in server.requests[1].body
    assert sent["messages"][2]["content"][1]["toolResult"] == {
        "toolUseId": "tooluse_2",
        "content": [],
        "status": "error",
    }
    # Of another provider, whose thoughts have no signature here.
    asked.chat.messages[1].parts[0].reasoning.signature = ""
    dropped = [entry.name for entry in (await chat(client, asked)).receipt if entry.outcome == "dropped"]
    assert dropped == ["messages[1].content[0]"]


@cell(1, 10, 12)
async def test_bodies_of_other_formats_are_translated(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire_bedrock.ANSWER)
    body = {"model": "x", "messages": [{"role": "developer", "content": "Be brief."}], "temperature": 1.5}
    body["messages"].append({"role": "user", "content": "hi"})
    response = await chat(client, raw(body, OPENAI, output_cap=77))
    sent = botocore_judge.check_request(server.requests[0].body)
    assert sent == {
        "messages": [{"role": "user", "content": [{"text": "hi"}]}],
        "system": [{"text": "Be brief."}],
        "inferenceConfig": {"maxTokens": 77, "temperature": 1.0},
    }
    assert not response.HasField("raw_body")
    outcomes = {entry.name: entry.outcome for entry in response.receipt}
    assert outcomes["max_tokens"] == "added"
    assert outcomes["temperature"] == "clamped"
    for module in (openai_chat, anthropic_messages):
        written = module.write_response(
            response.message, response.finish, response.usage, response.response_id, response.model, 1
        )
        assert TEXT in json.dumps(json.loads(written), ensure_ascii=False)
    body = {"model": "x", "max_tokens": 5000, "messages": [{"role": "user", "content": "hi"}]}
    body["thinking"] = {"type": "enabled", "budget_tokens": 2000}
    await chat(client, raw(body, ANTHROPIC))
    sent = botocore_judge.check_request(server.requests[1].body)
    assert sent["additionalModelRequestFields"] == {"thinking": {"type": "enabled", "budget_tokens": 2000}}


@cell(12)
async def test_strict_refuses_before_anything_is_sent(server: FaultServer, client: ProviderService) -> None:
    body = {"model": "x", "messages": [{"role": "user", "content": "hi"}], "logit_bias": {"1": 2}}
    with pytest.raises(RpcError) as caught:
        await chat(client, raw(body, OPENAI, strict=True))
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"
    assert caught.value.violations[0].field == "logit_bias"
    assert server.requests == []


@cell(42)
@cell(42, adapter="titan")
@pytest.mark.parametrize("token", ["", "temporary-token/+="])
@pytest.mark.parametrize(
    "model",
    [
        CLAUDE,
        TITAN,
        "m.plain",
        "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.anthropic.claude-x",
    ],
)
async def test_signatures_equal_botocores(server: FaultServer, model: str, token: str) -> None:
    configured = {
        "adapter": "bedrock",
        "base_url": server.url,
        "region": REGION,
        "access_key_id": KEY_ID,
        "secret_access_key": KEY,
    }
    if token:
        configured["session_token"] = token
    server.script = answer(wire_bedrock.TITAN_ANSWER if TITAN in model else wire_bedrock.ANSWER)
    async with running_providers(bedrock=ProviderSettings.model_validate(configured)) as client:
        await chat(client, typed(model))
        server.script = answer({"modelSummaries": []})
        await client.list_models(pb.ListModelsRequest(provider="bedrock"), Call.internal(5))
    for request in server.requests:
        expected = botocore_judge.expected_authorization(
            request, server.url, REGION, KEY_ID, KEY, token or None
        )
        assert request.headers["Authorization"] == expected
        assert request.headers.get("X-Amz-Security-Token", "") == token
        assert KEY not in str(request.headers)
    assert botocore_judge.model_in(server.requests[0].path) == model
    assert server.requests[0].path.count("/") == 3


async def test_a_large_body_is_signed(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(wire_bedrock.ANSWER)
    asked = typed()
    asked.chat.messages[0].content = "x" * 2**20
    await chat(client, asked)
    request = server.requests[0]
    expected = botocore_judge.expected_authorization(request, server.url, REGION, KEY_ID, KEY)
    assert request.headers["Authorization"] == expected


@cell(42)
async def test_a_wrong_clock_is_corrected(server: FaultServer, client: ProviderService) -> None:
    refusal = {"message": "Signature expired: 20260101T000000Z is now earlier than 20260102T000000Z"}
    headers = {
        "x-amzn-ErrorType": "InvalidSignatureException:http://internal.amazon.com/",
        "Date": "Fri, 01 Jan 2038 00:00:00 GMT",
    }
    server.script = answer(refusal, 403, headers)
    with pytest.raises(RpcError) as caught:
        await chat(client, typed())
    assert server.injected["status_403"] == 1
    assert caught.value.reason == "PROVIDER_FAILED"
    assert caught.value.metadata["retryable"] == "true"
    assert "the clock of this machine differs by" in caught.value.message
    server.script = answer(wire_bedrock.ANSWER)
    await chat(client, typed())
    request = server.requests[1]
    signed_at = datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert abs(signed_at - datetime(2038, 1, 1, tzinfo=UTC)) < timedelta(seconds=30)
    expected = botocore_judge.expected_authorization(request, server.url, REGION, KEY_ID, KEY)
    assert request.headers["Authorization"] == expected


async def test_a_bearer_token_replaces_the_signature(server: FaultServer) -> None:
    configured = {"adapter": "bedrock", "base_url": server.url, "region": REGION, "api_key": KEY}
    server.script = answer(wire_bedrock.ANSWER)
    async with running_providers(bedrock=ProviderSettings.model_validate(configured)) as client:
        await chat(client, typed())
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    assert "X-Amz-Date" not in server.requests[0].headers


@cell(16)
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("end_turn", "stop"),
        ("tool_use", "tool_calls"),
        ("max_tokens", "length"),
        ("stop_sequence", "stop"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("malformed_model_output", "malformed"),
        ("malformed_tool_use", "malformed"),
        ("model_context_window_exceeded", "context_exceeded"),
        ("surprise", "unknown"),
    ],
)
async def test_finish_reasons(server: FaultServer, client: ProviderService, word: str, reason: str) -> None:
    added = {"additionalModelResponseFields": {"stop_sequence": "END"}} if word == "stop_sequence" else {}
    server.script = answer({**wire_bedrock.ANSWER, "stopReason": word, **added})
    unary = (await chat(client, typed())).finish
    events = [*wire_bedrock.PLAIN[:4], wire_bedrock.stop(word, **added), wire_bedrock.METADATA]
    server.script = event_stream.event_stream(event_stream.frames(*events))
    streamed = (await stream_chat(client, typed()))[-1].end.finish
    assert unary == streamed
    assert (unary.reason, unary.raw) == (reason, word)
    assert unary.stop_sequence == ("END" if added else "")


@cell(41)
async def test_unknown_events_and_blocks(server: FaultServer, client: ProviderService) -> None:
    image = {"image": {"source": {"bytes": "iVBORw0KGgo="}}}
    call = {"toolUse": {"toolUseId": "s1", "name": "search", "type": "server_tool_use"}}
    result = {"toolResult": {"toolUseId": "s1", "type": "found", "status": "success"}}
    events = [
        ("initial-response", {}),
        wire_bedrock.START,
        ("somethingNew", {"contentBlockIndex": 0, "delta": {"text": "not text"}}),
        ("contentBlockStart", {"contentBlockIndex": 0, "start": {"image": {"format": "png"}}}),
        wire_bedrock.delta(0, **image),
        wire_bedrock.block_stop(0),
        ("contentBlockStart", {"contentBlockIndex": 1, "start": call}),
        wire_bedrock.delta(1, toolUse={"input": '{"q":'}),
        wire_bedrock.delta(1, toolUse={"input": "1}"}),
        wire_bedrock.block_stop(1),
        ("contentBlockStart", {"contentBlockIndex": 2, "start": result}),
        wire_bedrock.delta(2, toolResult=[{"text": "found"}]),
        wire_bedrock.block_stop(2),
        # Another kind under the same index is another part.
        wire_bedrock.delta(3, reasoningContent={"text": "hm"}),
        wire_bedrock.delta(3, text="ok"),
        wire_bedrock.delta(3, citation={"title": "t"}),
        wire_bedrock.delta(3, somethingNew={"a": 1}),
        wire_bedrock.stop("end_turn"),
        wire_bedrock.METADATA,
    ]
    server.script = event_stream.event_stream(event_stream.frames(*events))
    messages = await stream_chat(client, typed())
    assert text_of(messages) == "ok"
    starts = [message.part_start.part for message in messages if message.HasField("part_start")]
    assert [part.WhichOneof("kind") for part in starts] == ["image", "opaque", "opaque", "reasoning", "text"]
    assert starts[0].image.data == b"\x89PNG\r\n\x1a\n"
    assert json.loads(starts[1].opaque.raw_json)["toolUse"] == {**call["toolUse"], "input": {"q": 1}}
    assert json.loads(starts[2].opaque.raw_json)["toolResult"]["content"] == [{"text": "found"}]
    content = [
        {"guardContent": {"text": {"text": "x"}}},
        {"text": "ok"},
        {"citationsContent": {"content": []}},
    ]
    server.script = answer({**wire_bedrock.ANSWER, "output": {"message": {"content": content}}})
    unary = await chat(client, typed())
    assert [part.WhichOneof("kind") for part in unary.message.parts] == ["opaque", "text", "text"]
    assert json.loads(unary.message.parts[0].opaque.raw_json) == content[0]


async def test_a_prompt_router_names_the_model(server: FaultServer, client: ProviderService) -> None:
    chosen = "arn:aws:bedrock:eu-west-1::foundation-model/anthropic.claude-y"
    trace = {"promptRouter": {"invokedModelId": chosen}}
    server.script = answer({**wire_bedrock.ANSWER, "trace": trace})
    response = await chat(client, typed())
    assert response.model == chosen
    assert json.loads(response.message.extension_json["@response"])["trace"] == trace


@cell(1, 2, 10)
async def test_titan_text(server: FaultServer, client: ProviderService) -> None:
    asked = typed(TITAN)
    asked.chat.messages.insert(0, Message(role="system", content="Be kind."))
    asked.chat.temperature, asked.chat.top_p = 1.5, 0.5
    asked.chat.stop.append("END")
    asked.chat.tools.append(Tool(name="f"))
    server.script = answer(wire_bedrock.TITAN_ANSWER)
    unary = await chat(client, asked)
    assert server.requests[0].path == f"/model/{TITAN}/invoke"
    assert server.requests[0].json() == {
        "inputText": "Be kind.\nUser: hi\nBot:",
        "textGenerationConfig": {
            "maxTokenCount": 50,
            "temperature": 1.0,
            "topP": 0.5,
            "stopSequences": ["END"],
        },
    }
    outcomes = {entry.name: entry.outcome for entry in unary.receipt}
    assert (outcomes["tools"], outcomes["temperature"]) == ("dropped", "clamped")
    assert unary.message.parts[0].text.text == TEXT
    assert (unary.usage.input_total, unary.usage.output_total) == (5, 8)
    whole = event_stream.frames(*wire_bedrock.TITAN_EVENTS)
    server.script = event_stream.event_stream(*(whole[i : i + 7] for i in range(0, len(whole), 7)))
    _, *events, end = await stream_chat(client, asked)
    assert server.requests[1].path == f"/model/{TITAN}/invoke-with-response-stream"
    assert text_of(events) == TEXT
    assert (end.end.finish, end.end.usage) == (unary.finish, unary.usage)
    sdk = botocore_judge.client("bedrock-runtime", server.url, REGION, KEY_ID, KEY)
    read = await asyncio.to_thread(
        lambda: list(sdk.invoke_model_with_response_stream(modelId=TITAN, body=b"{}")["body"])
    )
    assert json.loads(read[1]["chunk"]["bytes"])["outputText"] == "Welt 🌍"


async def test_titan_takes_text_only(server: FaultServer, client: ProviderService) -> None:
    asked = typed(TITAN)
    asked.chat.messages.append(Message(role="user", parts=[Part(image={"url": "https://example.com/a.png"})]))
    with pytest.raises(RpcError, match="text only") as caught:
        await chat(client, asked)
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"
    tool = Message(role="tool", parts=[Part(tool_result={"call_id": "c"})])
    asked.chat.messages[1].CopyFrom(tool)
    with pytest.raises(RpcError, match="no tools"):
        await chat(client, asked)
    assert server.requests == []


@cell(51, adapter="titan")
async def test_embeddings(server: FaultServer, client: ProviderService) -> None:
    texts = [f"text {index}" for index in range(20)]

    def vectors(body: bytes) -> dict[str, Any]:
        return {"embedding": [float(json.loads(body)["inputText"].split()[1]), 0.5], "inputTextTokenCount": 2}

    server.respond = vectors
    request = pb.EmbedRequest(provider="bedrock", model=TITAN_EMBED, inputs=texts, dimensions=256)
    response = await client.embed(request, Call.internal(5))
    assert [list(each.values) for each in response.embeddings] == [[float(i), 0.5] for i in range(20)]
    assert (response.usage.input_total, response.usage.estimated) == (40, False)
    assert server.requests[0].path == "/model/amazon.titan-embed-text-v2%3A0/invoke"
    assert server.requests[0].json().keys() == {"inputText", "dimensions"}
    for body in (
        b'{"model": "m", "input": "text 7"}',
        b'{"model": "m", "input": ["text 7"], "dimensions": null}',
    ):
        request = pb.EmbedRequest(provider="bedrock", model=TITAN_EMBED, raw_body=body)
        response = await client.embed(request, Call.internal(5))
        assert not response.HasField("raw_body")
        assert list(response.embeddings[0].values) == [7.0, 0.5]


@cell(51, adapter="titan")
@pytest.mark.parametrize(
    ("model", "fields", "reason"),
    [
        ("cohere.embed-english-v3", {"inputs": ["a"]}, "PARAMETER_UNSUPPORTED"),
        ("amazon.titan-embed-text-v1", {"inputs": ["a"], "dimensions": 8}, "PARAMETER_UNSUPPORTED"),
        (TITAN_EMBED, {"raw_body": b'{"model": "m"}'}, "INVALID_ARGUMENT"),
        (TITAN_EMBED, {"raw_body": b'{"input": [[1, 2]]}'}, "INVALID_ARGUMENT"),
    ],
)
async def test_embeddings_that_cannot_be_had(
    server: FaultServer, client: ProviderService, model: str, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RpcError) as caught:
        await client.embed(pb.EmbedRequest(provider="bedrock", model=model, **fields), Call.internal(5))
    assert caught.value.reason == reason
    assert server.requests == []


@cell(51, adapter="titan")
async def test_one_failed_vector_fails_all(server: FaultServer, client: ProviderService) -> None:
    server.script = answer({"message": "slow"}, 429, {"x-amzn-ErrorType": "ThrottlingException"})
    request = pb.EmbedRequest(provider="bedrock", model=TITAN_EMBED, inputs=["a"] * 50)
    with pytest.raises(RpcError) as caught:
        await client.embed(request, Call.internal(5))
    assert caught.value.reason == "PROVIDER_RATE_LIMITED"
    assert 1 <= server.injected["status_429"] < 50
    server.script = answer({"embedding": ["x"]})
    with pytest.raises(RpcError) as caught:
        await client.embed(request, Call.internal(5))
    assert caught.value.reason == "PROVIDER_PROTOCOL"
    server.script = answer({"embedding": [1.0]})
    request = pb.EmbedRequest(provider="bedrock", model=TITAN_EMBED, inputs=["a"])
    assert (await client.embed(request, Call.internal(5))).usage.estimated


async def test_models_health_and_capabilities(server: FaultServer, client: ProviderService) -> None:
    summary = {"modelArn": "arn:aws:bedrock:eu-west-1::foundation-model/a.b-v1:0", "modelId": "a.b-v1:0"}
    server.script = answer({"modelSummaries": [{**summary, "modelName": "B"}]})
    sdk = botocore_judge.client("bedrock", server.url, REGION, KEY_ID, KEY)
    assert (await asyncio.to_thread(sdk.list_foundation_models))["modelSummaries"][0]["modelName"] == "B"
    listed = await client.list_models(pb.ListModelsRequest(provider="bedrock"), Call.internal(5))
    assert [(model.model, model.display_name) for model in listed.models] == [("a.b-v1:0", "B")]
    assert [request.path for request in server.requests] == ["/foundation-models"] * 2
    health = await client.check_health(pb.CheckHealthRequest(provider="bedrock"), Call.internal(5))
    assert health.healthy
    server.script = answer({"message": "no"}, 403, {"x-amzn-ErrorType": "UnrecognizedClientException"})
    health = await client.check_health(pb.CheckHealthRequest(provider="bedrock"), Call.internal(5))
    assert health.detail == "PROVIDER_CREDENTIAL_REFUSED: bedrock: no"
    server.script = answer({"modelSummaries": [{}]})
    health = await client.check_health(pb.CheckHealthRequest(provider="bedrock"), Call.internal(5))
    assert health.detail.startswith("PROVIDER_PROTOCOL")
    capabilities = await client.get_capabilities(pb.GetCapabilitiesRequest(), Call.internal(5))
    assert capabilities.providers[0].adapter == "bedrock"
    assert list(capabilities.providers[0].wire_formats) == []
    assert "embed" in capabilities.providers[0].features


async def test_connections_are_used_again(server: FaultServer, client: ProviderService) -> None:
    server.script = event_stream.event_stream(event_stream.frames(*wire_bedrock.PLAIN))
    for _ in range(3):
        await stream_chat(client, typed())
    server.script = [Head(), Send(json.dumps(wire_bedrock.ANSWER).encode())]
    await chat(client, typed())
    assert len({request.connection for request in server.requests}) == 1
