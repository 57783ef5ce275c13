"""Good answers of vendors whose format no caller speaks: every body is translated, both ways."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import Call, RpcError
from services.formats import anthropic_messages, openai_chat
from tests.integration.providers import test_receipts
from tests.support import gemini_wire, ollama_wire
from tests.support.adapters import WIRES, openai_shaped, typed
from tests.support.fault_server import FaultServer, answer, running_fault_server
from tests.support.matrix import cells
from tests.support.providers import KEY, chat, running_providers, settings, stream_chat, text_of

TEXT = "Grüße, Welt 🌍"
BOTH = ("gemini", "ollama")
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.fixture
async def client(server: FaultServer) -> AsyncIterator[ProviderService]:
    configured = {name: settings(name, server.url) for name in BOTH}
    async with running_providers(**configured) as client:
        yield client


def reasoning_of(messages: list[pb.StreamChatResponse]) -> str:
    return "".join(message.part_delta.reasoning for message in messages)


@pytest.mark.parametrize("adapter", cells(1, *BOTH))
async def test_plain_answer(server: FaultServer, client: ProviderService, adapter: str) -> None:
    server.script = answer(WIRES[adapter].answer)
    response = await chat(client, typed(adapter))
    thought, text = response.message.parts
    assert thought.reasoning.text == "Let me see."
    assert text.text.text == TEXT
    assert (response.finish.reason, response.usage.estimated) == ("stop", False)
    sent = server.requests[0]
    if adapter == "gemini":
        assert sent.path == "/v1beta/models/real-model:generateContent"
        assert sent.headers["x-goog-api-key"] == KEY
        assert (response.model, response.response_id) == ("gemini-x-2026", "resp-1")
        assert (response.usage.input_total, response.usage.output_total) == (23, 13)
        assert sent.json()["generationConfig"] == {"maxOutputTokens": 50}
    else:
        assert sent.path == "/api/chat"
        assert sent.headers["Authorization"] == f"Bearer {KEY}"
        assert response.model == "llama-x"
        assert (response.usage.input_total, response.usage.output_total) == (26, 9)
        assert (sent.json()["model"], sent.json()["stream"]) == ("real-model", False)


@pytest.mark.parametrize("adapter", cells(2, *BOTH))
@pytest.mark.parametrize("tools", [False, True])
async def test_stream_equals_answer(
    server: FaultServer, client: ProviderService, adapter: str, tools: bool
) -> None:
    wire = WIRES[adapter]
    server.script = answer(wire.tool_answer if tools else wire.answer)
    unary = await chat(client, typed(adapter))
    server.script = wire.stream(wire.frames(wire.tool_chunks if tools else wire.chunks))
    start, *events, end = await stream_chat(client, typed(adapter))
    assert not start.start.wire_format
    assert (start.start.model, start.start.response_id) == (unary.model, unary.response_id)
    texts = [part.text.text for part in unary.message.parts]
    assert text_of(events) == "".join(texts) == ("I look. " if tools else TEXT)
    assert reasoning_of(events) == "".join(part.reasoning.text for part in unary.message.parts)
    calls = [part.tool_call for part in unary.message.parts if part.HasField("tool_call")]
    streamed: dict[int, list[str]] = {}
    for event in events:
        if event.part_start.part.HasField("tool_call"):
            call = event.part_start.part.tool_call
            streamed[event.part_start.index] = [call.name, call.signature, ""]
        elif event.part_delta.HasField("arguments_json"):
            streamed[event.part_delta.index][2] += event.part_delta.arguments_json
    assert list(streamed.values()) == [[call.name, call.signature, call.arguments_json] for call in calls]
    assert end.end.finish == unary.finish
    assert unary.finish.reason == ("tool_calls" if tools else "stop")
    assert end.end.usage == unary.usage
    starts = [event.part_start.index for event in events if event.HasField("part_start")]
    stops = [event.part_stop.index for event in events if event.HasField("part_stop")]
    assert starts == stops == list(range(len(starts)))


@pytest.mark.parametrize("adapter", cells(3, *BOTH))
@pytest.mark.parametrize("size", [1, 7, 61])
async def test_any_split_gives_the_same_events(
    server: FaultServer, client: ProviderService, adapter: str, size: int
) -> None:
    wire = WIRES[adapter]
    whole = wire.frames(wire.chunks)
    server.script = wire.stream(whole)
    expected = await stream_chat(client, typed(adapter))
    server.script = wire.stream(*(whole[i : i + size] for i in range(0, len(whole), size)))
    assert await stream_chat(client, typed(adapter)) == expected
    assert text_of(expected) == TEXT


@pytest.mark.parametrize("adapter", cells(4, "gemini"))
async def test_events_by_the_specification(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    wire = WIRES[adapter]
    server.script = wire.stream(wire.frames(wire.chunks))
    expected = await stream_chat(client, typed(adapter))
    pretty = b"".join(
        b"".join(b"data: %b\r\n" % line for line in json.dumps(chunk, indent=1).encode().splitlines())
        + b"\r\n"
        for chunk in wire.chunks
    )
    server.script = wire.stream(b": comment\r\n\r\n" + pretty.removesuffix(b"\r\n\r\n"))
    assert await stream_chat(client, typed(adapter)) == expected


@pytest.mark.parametrize("adapter", cells(6, "gemini"))
async def test_ids_are_new_in_each_answer(server: FaultServer, client: ProviderService, adapter: str) -> None:
    server.script = answer(WIRES[adapter].tool_answer)
    ids = [
        part.tool_call.id
        for _ in range(2)
        for part in (await chat(client, typed(adapter))).message.parts
        if part.HasField("tool_call")
    ]
    assert len(set(ids)) == 6
    assert all(len(identifier) <= 40 for identifier in ids)


@pytest.mark.parametrize("adapter", BOTH)
async def test_a_conversation_with_tools_through_the_openai_client(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    wire = WIRES[adapter]
    server.script = answer(wire.tool_answer)
    response = await chat(client, openai_shaped(adapter, BODY))
    assert not response.HasField("raw_body")
    written = openai_chat.write_response(
        response.message, response.finish, response.usage, "r", response.model, 1
    )
    completion = openai.types.chat.ChatCompletion.model_validate_json(written, strict=True)
    message = completion.choices[0].message
    assert completion.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    results = [{"role": "tool", "tool_call_id": call.id, "content": "1"} for call in message.tool_calls]
    messages = [*BODY["messages"], message.model_dump(exclude_none=True), *results]
    await chat(client, openai_shaped(adapter, {**BODY, "messages": messages}))
    sent = server.requests[1].json()
    if adapter == "gemini":
        assert sent["contents"][1]["parts"] == [
            *gemini_wire.TOOL_PARTS[:3],
            {"functionCall": {"name": "wait", "args": {}}},
        ]
        names = [part["functionResponse"]["name"] for part in sent["contents"][2]["parts"]]
        assert names == ["look", "look", "wait"]
    else:
        assert sent["messages"][1]["tool_calls"] == ollama_wire.CALLS
        assert [message["tool_name"] for message in sent["messages"][2:]] == ["look", "look", "wait"]


@pytest.mark.parametrize("adapter", BOTH)
async def test_an_answer_for_the_anthropic_client(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    server.script = answer(WIRES[adapter].tool_answer)
    response = await chat(client, typed(adapter))
    written = anthropic_messages.write_response(
        response.message, response.finish, response.usage, "r", response.model, 1
    )
    message = anthropic.types.Message.model_validate_json(written, strict=True)
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use", "tool_use"]
    assert message.stop_reason == "tool_use"


@pytest.mark.parametrize("adapter", cells(15, *BOTH))
async def test_usage_that_is_not_reported_is_estimated(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    wire = WIRES[adapter]
    hidden = {"usageMetadata", "prompt_eval_count", "eval_count"}

    def without(document: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in document.items() if name not in hidden}

    server.script = answer(without(wire.answer))
    usage = (await chat(client, typed(adapter))).usage
    assert usage.estimated
    server.script = wire.stream(wire.frames([without(chunk) for chunk in wire.chunks]))
    usage = (await stream_chat(client, typed(adapter)))[-1].end.usage
    assert usage.estimated
    assert usage.input_total > 0
    assert usage.output_total == 6  # 24 characters


@pytest.mark.parametrize("adapter", BOTH)
async def test_strict_refuses_before_anything_is_sent(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    with pytest.raises(RpcError, match="vendor_x") as caught:
        await chat(client, openai_shaped(adapter, {**BODY, "vendor_x": 1}, strict=True))
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"
    assert server.requests == []


@pytest.mark.parametrize("adapter", BOTH)
async def test_connections_are_used_again(server: FaultServer, client: ProviderService, adapter: str) -> None:
    wire = WIRES[adapter]
    server.script = wire.stream(wire.frames(wire.chunks))
    for _ in range(3):
        await stream_chat(client, typed(adapter))
    assert len({request.connection for request in server.requests}) == 1


@pytest.mark.parametrize("adapter", BOTH)
async def test_models_health_and_capabilities(
    server: FaultServer, client: ProviderService, adapter: str
) -> None:
    server.script = answer(WIRES[adapter].models)
    listed = await client.list_models(pb.ListModelsRequest(provider=adapter), Call.internal(5))
    expected = ("gemini-x", 4096) if adapter == "gemini" else ("llama-x", 0)
    assert [(model.model, model.context_length) for model in listed.models] == [expected]
    path = "/v1beta/models?pageSize=1000" if adapter == "gemini" else "/api/tags"
    assert (server.requests[0].method, server.requests[0].path) == ("GET", path)
    health = await client.check_health(pb.CheckHealthRequest(provider=adapter), Call.internal(5))
    assert health.healthy
    assert {request.method for request in server.requests} == {"GET"}  # it spends nothing
    server.script = answer({"models": 5})
    health = await client.check_health(pb.CheckHealthRequest(provider=adapter), Call.internal(5))
    assert health.detail.startswith("PROVIDER_PROTOCOL")
    capabilities = await client.get_capabilities(pb.GetCapabilitiesRequest(), Call.internal(5))
    found = next(each for each in capabilities.providers if each.provider == adapter)
    assert (found.adapter, list(found.wire_formats)) == (adapter, [])


def embedding(adapter: str, vectors: list[list[float]], tokens: int | None) -> dict[str, Any]:
    if adapter == "gemini":
        usage = {"usageMetadata": {"promptTokenCount": tokens}} if tokens else {}
        return {"embeddings": [{"values": vector} for vector in vectors], **usage}
    return {"model": "e", "embeddings": vectors, **({"prompt_eval_count": tokens} if tokens else {})}


@pytest.mark.parametrize("adapter", cells(51, *BOTH))
async def test_embeddings(server: FaultServer, client: ProviderService, adapter: str) -> None:
    server.script = answer(embedding(adapter, [[1.0, 0.0], [0.0, 1.0]], 4))
    request = pb.EmbedRequest(provider=adapter, model="e", inputs=["a", "b"], dimensions=2)
    response = await client.embed(request, Call.internal(5))
    assert [list(vector.values) for vector in response.embeddings] == [[1.0, 0.0], [0.0, 1.0]]
    assert (response.usage.input_total, response.usage.estimated) == (4, False)
    sent = server.requests[0]
    if adapter == "gemini":
        assert sent.path == "/v1beta/models/e:batchEmbedContents"
        assert sent.json()["requests"][1] == {
            "model": "models/e",
            "content": {"parts": [{"text": "b"}]},
            "outputDimensionality": 2,
        }
    else:
        assert (sent.path, sent.json()) == (
            "/api/embed",
            {"model": "e", "input": ["a", "b"], "dimensions": 2},
        )
    server.script = answer(embedding(adapter, [[1.0, 0.0]], None))
    raw = pb.EmbedRequest(provider=adapter, model="e", raw_body=b'{"input": "x", "dimensions": 2}')
    response = await client.embed(raw, Call.internal(5))
    assert len(response.embeddings) == 1
    assert response.usage.estimated
    raw.raw_body = b'{"input": [[1, 2]]}'
    with pytest.raises(RpcError) as caught:
        await client.embed(raw, Call.internal(5))
    assert caught.value.reason == "INVALID_ARGUMENT"
    for wrong in (embedding(adapter, [[1.0], [2.0]], 1), {"embeddings": 5}):
        server.script = answer(wrong)
        with pytest.raises(RpcError) as caught:
            await client.embed(pb.EmbedRequest(provider=adapter, model="e", inputs=["a"]), Call.internal(5))
        assert caught.value.reason == "PROVIDER_PROTOCOL"


async def test_many_texts_are_embedded_in_batches(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(embedding("gemini", [[0.5]] * 100, 7))
    request = pb.EmbedRequest(provider="gemini", model="e", inputs=[str(i) for i in range(200)])
    response = await client.embed(request, Call.internal(5))
    assert len(response.embeddings) == 200
    assert response.usage.input_total == 14
    sent = [each["content"]["parts"][0]["text"] for r in server.requests for each in r.json()["requests"]]
    assert sent == list(request.inputs)


async def test_a_models_name_cannot_leave_its_place(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(gemini_wire.ANSWER)
    attempt = typed("gemini")
    for model, path in (("models/x", "x"), ("../../evil?key=1#", "..%2F..%2Fevil%3Fkey%3D1%23")):
        attempt.model = model
        await chat(client, attempt)
        assert server.requests[-1].path == f"/v1beta/models/{path}:generateContent"


@pytest.mark.parametrize("adapter", BOTH)
@pytest.mark.parametrize("form", ["openai", "anthropic"])
async def test_every_parameter_of_the_schemas_has_a_receipt(
    server: FaultServer, client: ProviderService, adapter: str, form: str
) -> None:
    names, values = {
        "openai": (test_receipts.OPENAI_FIELDS, test_receipts.OPENAI_VALUES),
        "anthropic": (test_receipts.ANTHROPIC_FIELDS, test_receipts.ANTHROPIC_VALUES),
    }[form]
    body = {name: values.get(name, {"any": "thing"}) for name in names}
    server.script = answer(WIRES[adapter].answer)
    asked = openai_shaped(adapter, body)
    if form == "anthropic":
        asked.wire_format = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
    receipt = (await chat(client, asked)).receipt
    told = {entry.name.partition("[")[0].partition(".")[0] for entry in receipt}
    assert set(body) <= told


async def test_an_answer_that_broke_off_is_continued(server: FaultServer, client: ProviderService) -> None:
    server.script = answer(ollama_wire.ANSWER)
    await chat(client, typed("ollama", prefill_text="Grüße"))
    assert server.requests[0].json()["messages"][-1] == {"role": "assistant", "content": "Grüße"}
    capabilities = await client.get_capabilities(pb.GetCapabilitiesRequest(), Call.internal(5))
    able = {each.provider for each in capabilities.providers if "prefill" in each.features}
    assert able & set(BOTH) == {"ollama"}
