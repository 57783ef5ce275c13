"""Rows 7 to 12: what we send is legal by the vendors' own types, and nothing of it is lost in silence."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import Message, Part
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from services.common.rpc import RpcError
from tests.support import gemini_wire, wire, wire_bedrock
from tests.support.fault_server import FaultServer, answer
from tests.support.providers import chat
from tests.support.vendors import VENDORS, Ask
from tests.support.vendors.judges import JUDGES
from tests.support.vendors.outcomes import read
from tests.support.vendors.table import CHAT, MESSAGES, RESPONSES, asks
from tests.unit.formats.test_translation import FULL_OPENAI

pytestmark = pytest.mark.asyncio(loop_scope="module")
Json = dict[str, Any]
RESPONSES_ONLY = ("openai_responses",)
NO_RESPONSES = ("openai_responses",)
PIXEL = "data:image/png;base64,iVBORw0KGgo="
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
ANSWER_FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
INSTRUCTED = [
    {"role": "system", "content": "Be kind."},
    {"role": "developer", "content": "Be short."},
    {"role": "user", "content": "hi"},
]


async def send(
    server: FaultServer, client: ProviderService, ask: Ask, body: Json, form: int = CHAT, **fields: Any
) -> tuple[Json, dict[str, str]]:
    """Send a body to the vendor, let its own types judge what arrived, and return that and the receipt."""
    wire_format: Any = RESPONSES if ask.vendor.raw_format == RESPONSES else form
    attempt = pb.Attempt(
        provider=ask.vendor.name,
        model=ask.vendor.model,
        raw_body=json.dumps(body).encode(),
        wire_format=wire_format,
        **fields,
    )
    server.script = ask.vendor.good(False)
    response = await chat(client, attempt)
    sent = JUDGES[ask.vendor.name](server.requests[-1].body)
    server.script = ask.vendor.good(True)
    await read(client, attempt)
    JUDGES[ask.vendor.name](server.requests[-1].body)
    return sent, {entry.name: entry.outcome for entry in response.receipt}


def in_chat(*content: Json, **fields: Any) -> Json:
    """Return a body whose last message has this content."""
    parts = [{"type": "text", "text": "hi"}, *content]
    return {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": parts}], **fields}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
_CALL = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": 1.0}}
_RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": True}
TOOL = {"name": "look", "input_schema": {"type": "object"}}
RESULTS: Json = {
    "model": "m",
    "max_tokens": 50,
    "tools": [TOOL],
    "messages": [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [_CALL]},
        {"role": "user", "content": [{**_RESULT, "content": [{"type": "text", "text": "see"}, IMAGE]}]},
    ],
}
CALLED = {"type": "function_call", "call_id": "toolu_1", "name": "look", "arguments": '{"at": 1.0}'}
OUTPUT = [
    {"type": "input_text", "text": "see"},
    {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
]
RESPONSES_RESULTS: Json = {
    "model": "m",
    "input": [
        {"role": "user", "content": "look"},
        CALLED,
        {"type": "function_call_output", "call_id": "toolu_1", "output": OUTPUT},
    ],
    "tools": [
        {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False},
    ],
}


@asks(7, without=(*NO_RESPONSES, "titan"), one_way=True)
async def test_tool_results_go_back(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    sent, receipt = await send(server, client, ask, RESULTS, MESSAGES)
    text = json.dumps(sent)
    assert '"see"' in text
    assert "iVBORw0KGgo=" in text
    assert b"1.0" in server.requests[0].body  # The arguments are the model's own text.
    assert ask.vendor.name == "ollama" or "toolu_1" in text  # Ollama has no ids: the name goes back.
    marked = {
        "anthropic": '"is_error": true',
        "bedrock": '"status": "error"',
        "gemini": '"error": "see"',
    }.get(ask.vendor.name)
    if marked is not None:
        assert marked in text
    else:  # No mark in this format: the receipt says so.
        assert [name for name in receipt if name.endswith("is_error")]


@asks(7, only=RESPONSES_ONLY)
async def test_tool_results_of_responses(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    sent, _ = await send(server, client, ask, RESPONSES_RESULTS)
    assert sent["input"] == RESPONSES_RESULTS["input"]


THOUGHTS: dict[str, tuple[Any, str]] = {
    "anthropic": (wire.ANTHROPIC_ANSWER, "c2ln"),
    "gemini": (gemini_wire.TOOL_ANSWER, gemini_wire.SIGNATURE),
    "bedrock": (wire_bedrock.ANSWER, wire_bedrock.SIGNATURE),
}


@asks(8, only=tuple(THOUGHTS), one_way=True)
async def test_thoughts_go_back_to_who_had_them(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    said, signature = THOUGHTS[ask.vendor.name]
    server.script = answer(said)
    attempt = ask.attempt()
    response = await chat(client, attempt)
    calls = [part.tool_call for part in response.message.parts if part.HasField("tool_call")]
    attempt.chat.messages.append(response.message)
    results = [Part(tool_result={"call_id": call.id, "name": call.name}) for call in calls]
    attempt.chat.messages.append(Message(role="tool", parts=results))
    await chat(client, attempt)
    assert signature.encode() in server.requests[-1].body  # Not a byte of it is changed.
    JUDGES[ask.vendor.name](server.requests[-1].body)
    # On its way to another vendor it stays behind, and the receipt says so.
    # The same models on another platform read each other's signatures.
    same = {"anthropic", "bedrock"} if ask.vendor.name in {"anthropic", "bedrock"} else {ask.vendor.name}
    for other in {"openai", "ollama", "anthropic", "gemini", "bedrock"} - same:
        attempt.provider, attempt.model = other, "m"
        server.script = VENDORS[other].good(False)
        receipt = (await chat(client, attempt)).receipt
        assert signature.encode() not in server.requests[-1].body, other
        assert [entry for entry in receipt if entry.outcome == "dropped"]


@asks(8, only=RESPONSES_ONLY)
async def test_thoughts_of_responses(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "Z0FBQUFB/+="}
    body = {"model": "m", "input": [thought, {"role": "user", "content": "hi"}]}
    sent, _ = await send(server, client, ask, body)
    assert sent["input"] == body["input"]
    document = json.dumps(body).encode()
    server.script = answer(wire.ANTHROPIC_ANSWER)
    attempt = pb.Attempt(provider="anthropic", model="m", raw_body=document, wire_format=RESPONSES)
    receipt = (await chat(client, attempt)).receipt
    assert b"Z0FBQUFB" not in server.requests[-1].body
    assert [entry for entry in receipt if entry.outcome == "dropped" and "input[0]" in entry.name] or [
        entry for entry in receipt if entry.outcome == "dropped"
    ]


MEDIA = {
    "image": {"type": "image_url", "image_url": {"url": PIXEL}},
    "image by address": {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
    "document": {
        "type": "file",
        "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
    },
    "text document": {
        "type": "file",
        "file": {"filename": "a.txt", "file_data": "data:text/plain;base64,R3LDvMOfZQ=="},
    },
    "audio": {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
}
REFUSED = {
    "anthropic": {"audio": "takes no audio"},
    "bedrock": {"image by address": "send the bytes"},
    "titan": dict.fromkeys(MEDIA, "takes text only"),
    "ollama": {
        "image by address": "send a data URL",
        "document": "documents only as text",
        "audio": "takes no audio",
    },
}
MARKS = {
    "image": ("iVBORw0KGgo=",),
    "image by address": ("https://example.com/a.png",),
    "document": ("JVBERg==",),
    "text document": ("R3LDvMOfZQ==", "Grüße"),
    "audio": ("UklGRg==",),
}


@asks(9, without=NO_RESPONSES, one_way=True)
@pytest.mark.parametrize("kind", MEDIA)
async def test_media(server: FaultServer, client: ProviderService, ask: Ask, kind: str) -> None:
    """It arrives, or the error says what the vendor takes, before anything is sent."""
    refusal = REFUSED.get(ask.vendor.name, {}).get(kind)
    if refusal is None:
        sent, _ = await send(server, client, ask, in_chat(MEDIA[kind]))
        assert any(mark in json.dumps(sent, ensure_ascii=False) for mark in MARKS[kind])
        return
    with pytest.raises(RpcError, match=refusal) as caught:
        await send(server, client, ask, in_chat(MEDIA[kind]))
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"
    assert caught.value.violations[0].field == "messages[0].content[1]"
    assert server.requests == []


@asks(9, only=RESPONSES_ONLY)
async def test_media_of_responses(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    content = [
        {"type": "input_image", "image_url": PIXEL, "detail": "auto"},
        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
    ]
    body = {"model": "m", "input": [{"role": "user", "content": content}]}
    sent, _ = await send(server, client, ask, body)
    assert sent["input"] == body["input"]


def instructions(vendor: str, sent: Json) -> list[str]:
    """Return what the model is told above the conversation, in order."""
    match vendor:
        case "anthropic":
            return [block["text"] for block in sent["system"]]
        case "gemini":
            return [part["text"] for part in sent["systemInstruction"]["parts"]]
        case "bedrock":
            return [block["text"] for block in sent["system"]]
        case "titan":
            return list(sent["inputText"].splitlines()[:2])
        case _:
            return [each["content"] for each in sent["messages"] if each["role"] in {"system", "developer"}]


@asks(10, without=NO_RESPONSES, one_way=True)
async def test_instructions(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    body = {"model": "m", "max_tokens": 50, "messages": INSTRUCTED}
    sent, receipt = await send(server, client, ask, body)
    assert instructions(ask.vendor.name, sent) == ["Be kind.", "Be short."]
    assert "dropped" not in receipt.values()
    # Those of another format arrive, too.
    body = {"model": "m", "max_tokens": 50, "system": "Be kind.", "messages": INSTRUCTED[2:]}
    sent, _ = await send(server, client, ask, body, MESSAGES)
    assert "Be kind." in json.dumps(sent)


@asks(10, only=RESPONSES_ONLY)
async def test_instructions_of_responses(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    body = {"model": "m", "instructions": "Be kind.", "input": INSTRUCTED[1:]}
    sent, _ = await send(server, client, ask, body)
    assert (sent["instructions"], sent["input"]) == ("Be kind.", INSTRUCTED[1:])


@asks(11, without=NO_RESPONSES, one_way=True)
async def test_structured_output(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    body = in_chat(response_format=ANSWER_FORMAT)
    if ask.vendor.name == "titan":
        with pytest.raises(RpcError) as caught:
            await send(server, client, ask, body, strict=True)
        assert caught.value.reason == "PARAMETER_UNSUPPORTED"
        assert server.requests == []
        _, receipt = await send(server, client, ask, body)
        assert receipt["response_format"] == "dropped"
        return
    sent, receipt = await send(server, client, ask, body, strict=True)
    assert receipt["response_format"] in {"forwarded", "translated"}
    found = {
        "anthropic": lambda: sent["output_config"]["format"]["schema"],
        "gemini": lambda: sent["generationConfig"]["responseJsonSchema"],
        "bedrock": lambda: json.loads(
            sent["outputConfig"]["textFormat"]["structure"]["jsonSchema"]["schema"]
        ),
        "ollama": lambda: sent["format"],
    }.get(ask.vendor.name, lambda: sent["response_format"]["json_schema"]["schema"])
    assert found() == SCHEMA


@asks(11, only=RESPONSES_ONLY)
async def test_structured_output_of_responses(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    text = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}
    sent, _ = await send(server, client, ask, {"model": "m", "input": "hi", "text": text}, strict=True)
    assert sent["text"] == text


def full(vendor: str) -> Json:
    """Return a body with all options, and the media that the vendor takes."""
    body: Json = json.loads(json.dumps(FULL_OPENAI))
    content = body["messages"][2]["content"]
    body["messages"][2]["content"] = {
        "titan": content[:1],
        "ollama": content[:2],
        "bedrock": content[:2],
    }.get(vendor, content)
    if vendor == "titan":
        body["messages"] = [each for each in body["messages"] if "tool_calls" not in each]
        body["messages"] = [each for each in body["messages"] if each["role"] != "tool"]
    more = {"seed": 5, "frequency_penalty": 0.5, "presence_penalty": 0.25, "reasoning_effort": "high"}
    return {
        **body,
        **more,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"1": 2},
        "metadata": {"a": "b"},
    }


@asks(12, without=NO_RESPONSES, one_way=True)
async def test_the_full_set_of_options_is_legal(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    body = full(ask.vendor.name)
    sent, receipt = await send(server, client, ask, body)
    told = {name.partition("[")[0].partition(".")[0] for name in receipt}
    assert body.keys() <= told | {"stream"}
    if ask.vendor.raw_format == CHAT:
        assert sent == {**body, "model": ask.vendor.model}
    # The same of another format, where the vendor takes calls and pictures.
    if ask.vendor.name != "titan":
        thinking = {"type": "enabled", "budget_tokens": 1024}
        other = {**RESULTS, "max_tokens": 3000, "thinking": thinking, "top_k": 4, "stop_sequences": ["END"]}
        await send(server, client, ask, other, MESSAGES)


@asks(12, only=RESPONSES_ONLY)
async def test_the_full_set_of_options_of_responses(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    body = {
        **RESPONSES_RESULTS,
        "instructions": "Be kind.",
        "max_output_tokens": 50,
        "temperature": 0.5,
        "top_p": 0.5,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "truncation": "auto",
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "safety_identifier": "u-1",
        "service_tier": "auto",
        "top_logprobs": 2,
    }
    sent, receipt = await send(server, client, ask, body)
    assert sent == {**body, "model": ask.vendor.model}
    assert receipt.keys() >= body.keys()


@asks(12, without=(*NO_RESPONSES, "titan"), one_way=True)
async def test_tools_keep_their_order(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    """Another order is another prompt: what the vendor has cached of it would be paid again."""
    names = [f"tool_{(number * 7) % 20}" for number in range(20)]
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in names
    ]
    for _ in range(2):
        await send(server, client, ask, in_chat(tools=tools))
    sent = [request.body.decode() for request in server.requests]
    for body in sent:
        assert re.findall(r"tool_\d+", body) == names
    assert sent[0] == sent[2]
    assert sent[1] == sent[3]


async def test_the_judges_are_strict() -> None:
    for name, judge in JUDGES.items():
        if name == "bedrock":
            body = b'{"messages": [], "odd": 1}'
        elif name == "titan":
            body = b'{"inputText": "x", "odd": 1}'
        else:
            messages = {"gemini": "contents"}.get(name, "messages")
            body = b'{"model": "m", "max_tokens": 5, "input": "x", "%b": [], "odd": 1}' % messages.encode()
        with pytest.raises(AssertionError):
            judge(body)
