"""The vendors' own clients accept our fakes, and their own types accept our requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import ollama as ollama_client
import pytest
from google import genai
from google.genai import types

from services.formats import anthropic_messages, gemini, ollama, openai_chat
from tests.support import gemini_wire, ollama_wire
from tests.support.adapters import WIRES
from tests.support.fault_server import FaultServer, answer, running_fault_server
from tests.support.matrix import cells
from tests.support.vendors import judges
from tests.unit.formats import test_gemini, test_ollama
from tests.unit.formats.test_translation import FULL_OPENAI

EVERYTHING = {
    **FULL_OPENAI,
    "seed": 5,
    "top_k": 4,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.25,
    "reasoning_effort": "high",
}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
RESULTS = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"a": 1}}],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "is_error": True,
                    "content": [{"type": "text", "text": "see"}, IMAGE],
                }
            ],
        },
    ],
}


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with running_fault_server() as server:
        yield server


@pytest.mark.parametrize("adapter", [cell for row in (7, 9, 10, 11, 12) for cell in cells(row, "gemini")])
@pytest.mark.parametrize("model", ["gemini-2.5-flash", "gemini-3-pro"])
def test_geminis_types_accept_what_is_sent(adapter: str, model: str) -> None:
    chats = [
        openai_chat.read_request(json.dumps(EVERYTHING).encode()),
        anthropic_messages.read_request(json.dumps(RESULTS).encode()),
    ]
    for chat in chats:
        judges.gemini(gemini.write_request(chat, model, own=False, output_cap=7)[0])
    with pytest.raises(ValueError, match="Extra inputs"):
        judges.gemini(b'{"contents": [{"parts": [{"txt": "x"}]}]}')


def test_every_finish_reason_that_the_client_knows_is_known() -> None:
    known = {word.value for word in types.FinishReason}
    assert known == set().union(*test_gemini.FINISHES.values()) - {"INVENTED_TOMORROW"}


async def test_the_gemini_client_accepts_the_fake(server: FaultServer) -> None:
    options = types.HttpOptions(base_url=server.url, api_version="v1beta")
    wire = WIRES["gemini"]

    def ask() -> types.GenerateContentResponse:
        with genai.Client(api_key="k", http_options=options) as client:
            return client.models.generate_content(model="m", contents="hi")

    def ask_streaming() -> list[types.GenerateContentResponse]:
        with genai.Client(api_key="k", http_options=options) as client:
            return list(client.models.generate_content_stream(model="m", contents="hi"))

    server.script = answer(wire.answer)
    whole = await asyncio.to_thread(ask)
    assert whole.text == gemini_wire.TEXT
    assert whole.usage_metadata is not None
    assert whole.usage_metadata.thoughts_token_count == 4
    server.script = answer(wire.tool_answer)
    called = await asyncio.to_thread(ask)
    assert [call.name for call in called.function_calls or ()] == ["look", "look", "wait"]
    server.script = answer(gemini_wire.BLOCKED)
    blocked = await asyncio.to_thread(ask)
    assert blocked.candidates is None
    server.script = wire.stream(wire.frames(wire.chunks))
    assert "".join(chunk.text or "" for chunk in await asyncio.to_thread(ask_streaming)) == gemini_wire.TEXT
    assert {request.path for request in server.requests} == {
        "/v1beta/models/m:generateContent",
        "/v1beta/models/m:streamGenerateContent?alt=sse",
    }


@pytest.mark.parametrize("adapter", [cell for row in (7, 9, 10, 11, 12) for cell in cells(row, "ollama")])
def test_ollamas_types_accept_what_is_sent(adapter: str) -> None:
    body = {**EVERYTHING, "messages": test_ollama.MESSAGES}
    chats = [
        openai_chat.read_request(json.dumps(body).encode()),
        anthropic_messages.read_request(json.dumps(RESULTS).encode()),
    ]
    for chat in chats:
        judges.ollama(ollama.write_request(chat, "m", True, output_cap=7)[0])


async def test_the_ollama_client_accepts_the_fake(server: FaultServer) -> None:
    async with ollama_client.AsyncClient(host=server.url) as client:
        await check_ollama_client(server, client)


async def check_ollama_client(server: FaultServer, client: ollama_client.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    wire = WIRES["ollama"]
    server.script = answer(wire.answer)
    whole = await client.chat(model="m", messages=messages)
    assert (whole.message.content, whole.message.thinking) == (ollama_wire.TEXT, "Let me see.")
    server.script = answer(wire.tool_answer)
    calls = (await client.chat(model="m", messages=messages)).message.tool_calls
    assert [call.function.name for call in calls or ()] == ["look", "look", "wait"]
    server.script = wire.stream(wire.frames(wire.chunks))
    chunks = await client.chat(model="m", messages=messages, stream=True)
    assert "".join([chunk.message.content or "" async for chunk in chunks]) == ollama_wire.TEXT
    server.script = answer({"model": "e", "embeddings": [[1.0, 0.5]], "prompt_eval_count": 1})
    assert (await client.embed(model="e", input=["a"])).embeddings == [[1.0, 0.5]]
    assert [request.path for request in server.requests] == ["/api/chat"] * 3 + ["/api/embed"]
