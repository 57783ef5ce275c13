"""Written requests are legal by the vendors' own types, and say what they were made of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from omnihub.common.v1.chat_pb2 import ChatInput, Message, Part, WireFormat
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from services.formats import (
    anthropic_messages,
    bedrock_converse,
    gemini,
    ollama,
    openai_chat,
    openai_responses,
    titan_text,
)
from services.formats.errors import FormatError
from tests.support.botocore_judge import check_request

OPENAI = WireFormat.WIRE_FORMAT_OPENAI_CHAT
ANTHROPIC = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
PIXEL = "data:image/png;base64,iVBORw0KGgo="

FULL_OPENAI: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": [{"type": "text", "text": "Be short."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": PIXEL}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
                {
                    "type": "file",
                    "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
                },
            ],
        },
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1.0}'}},
                {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "a dog"}]},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {"name": "look", "description": "Looks", "parameters": {"type": "object"}},
        },
        {"type": "function", "function": {"name": "wait"}},
    ],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "max_completion_tokens": 3000,
    "temperature": 1.5,
    "top_p": 0.5,
    "stop": ["END"],
    "user": "u-1",
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
}


# Kept alive: blocks are checked by them when they are iterated.
ANTHROPIC_REQUEST = TypeAdapter(MessageCreateParamsNonStreaming)
OPENAI_REQUEST = TypeAdapter(CompletionCreateParamsNonStreaming)


def check_anthropic(written: bytes) -> dict[str, Any]:
    """Validate by the SDK's types, nested blocks too: they are checked only when they are iterated."""
    value = ANTHROPIC_REQUEST.validate_python(json.loads(written))
    for message in value["messages"]:
        if not isinstance(message["content"], str):
            list(message["content"])
    if not isinstance(value.get("system", ""), str):
        list(value["system"])
    list(value.get("tools", ()))
    return json.loads(written)


def check_openai(written: bytes) -> dict[str, Any]:
    value = OPENAI_REQUEST.validate_python(json.loads(written))
    for message in value["messages"]:
        if message.get("content") is not None and not isinstance(message["content"], str):
            list(message["content"])
        list(message.get("tool_calls") or ())
    list(value.get("tools", ()))
    return json.loads(written)


def translate(body: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], dict[str, str]]:
    chat = openai_chat.read_request(json.dumps({**body, **changes}).encode())
    written, receipt = anthropic_messages.write_request(chat, "claude", False, source=OPENAI)
    return check_anthropic(written), {entry.name: entry.outcome for entry in receipt}


def test_openai_to_anthropic() -> None:
    body, receipt = translate(FULL_OPENAI)
    assert body["system"] == [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be short."}]
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert [block["type"] for block in body["messages"][0]["content"]] == [
        "text",
        "image",
        "image",
        "document",
    ]
    results = body["messages"][2]["content"]
    assert [block["type"] for block in results] == ["tool_result", "tool_result", "text"]
    assert results[0] == {"type": "tool_result", "tool_use_id": "c1", "content": "a cat"}
    assert body["messages"][1]["content"][1]["input"] == {"at": 1.0}
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert body["tools"][1]["input_schema"] == {"type": "object", "properties": {}}
    assert body["stop_sequences"] == ["END"]
    assert body["metadata"] == {"user_id": "u-1"}
    assert body["output_config"]["format"] == {"type": "json_schema", "schema": {"type": "object"}}
    assert receipt["temperature"] == "clamped"
    assert "dropped" not in receipt.values()


def test_there_and_back() -> None:
    chat = openai_chat.read_request(json.dumps(FULL_OPENAI).encode())
    written, _ = anthropic_messages.write_request(chat, "claude", False, source=OPENAI)
    again = anthropic_messages.read_request(written)
    body = check_openai(openai_chat.write_request(again, "gpt", False, source=ANTHROPIC)[0])
    assert [message["role"] for message in body["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
    ]
    assert body["messages"][2]["tool_calls"][0]["function"]["arguments"] == '{"at": 1.0}'
    assert body["messages"][3] == {"role": "tool", "tool_call_id": "c1", "content": "a cat"}
    assert body["tool_choice"] == "required"
    assert body["parallel_tool_calls"] is False
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("changes", "thinking", "outcome"),
    [
        ({"reasoning_effort": "low"}, {"type": "enabled", "budget_tokens": 2048}, "translated"),
        ({"reasoning_effort": "high"}, {"type": "enabled", "budget_tokens": 2999}, "translated"),
        ({"reasoning_effort": "none"}, {"type": "disabled"}, "translated"),
        ({"reasoning_effort": "low", "max_completion_tokens": 100}, None, "dropped"),
        ({"reasoning_effort": "low", "tool_choice": "required"}, None, "dropped"),
        ({"reasoning_effort": "low", "messages": FULL_OPENAI["messages"]}, None, "dropped"),
    ],
)
def test_effort_becomes_a_budget(changes: dict, thinking: dict | None, outcome: str) -> None:
    plain = {**FULL_OPENAI, "messages": [{"role": "user", "content": "hi"}], "tool_choice": "auto"}
    body, receipt = translate(plain, **changes)
    assert body.get("thinking") == thinking
    assert receipt["reasoning_effort"] == outcome
    if thinking and thinking["type"] == "enabled":
        assert "temperature" not in body
        assert receipt["top_p"] in {"dropped", "forwarded"}


def test_a_budget_is_dropped_where_a_call_came_without_thoughts() -> None:
    budget = {"type": "enabled", "budget_tokens": 2048}
    body, receipt = translate(FULL_OPENAI, thinking=budget)
    assert ("thinking" in body, receipt["thinking"]) == (False, "dropped")
    body, receipt = translate({**FULL_OPENAI, "messages": FULL_OPENAI["messages"][:3]}, thinking=budget)
    assert (body["thinking"], receipt["thinking"]) == (budget, "forwarded")


def test_a_budget_becomes_effort() -> None:
    body = {"model": "m", "max_tokens": 9000, "messages": [{"role": "user", "content": "hi"}]}
    body["thinking"] = {"type": "enabled", "budget_tokens": 8192}
    chat = anthropic_messages.read_request(json.dumps(body).encode())
    written, receipt = openai_chat.write_request(chat, "m", False, source=ANTHROPIC)
    assert check_openai(written)["reasoning_effort"] == "medium"
    assert [entry.outcome for entry in receipt if entry.name == "thinking"] == ["translated"]


def test_what_only_its_provider_can_read_is_dropped_and_named() -> None:
    body = {
        "model": "m",
        "max_tokens": 9,
        "messages": [
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}},
                    {"type": "text", "text": "ok", "cache_control": {"type": "ephemeral"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t",
                        "is_error": True,
                        "content": [
                            {"type": "text", "text": "see"},
                            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
                        ],
                    }
                ],
            },
        ],
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "top_k": 4,
        "service_tier": "auto",
    }
    chat = anthropic_messages.read_request(json.dumps(body).encode())
    written, receipt = openai_chat.write_request(chat, "m", False, source=ANTHROPIC)
    sent = check_openai(written)
    assert sent["messages"][0] == {"role": "assistant", "content": "ok"}
    assert sent["messages"][1] == {"role": "tool", "tool_call_id": "t", "content": "see"}
    assert sent["messages"][2]["content"][0]["type"] == "image_url"
    outcomes = {entry.name: entry.outcome for entry in receipt}
    dropped = {name for name, outcome in outcomes.items() if outcome == "dropped"}
    assert dropped == {
        "messages[0].parts[0]",
        "messages[0].content[0]",
        "tools[0]",
        "top_k",
        "service_tier",
    } | ({"cache_control"} & dropped)
    assert "cache_control" in dropped


def test_a_vendor_parameter_in_a_foreign_body_reaches_its_vendor() -> None:
    body, receipt = translate(FULL_OPENAI, thinking={"type": "adaptive"}, speed="fast")
    assert body["thinking"] == {"type": "adaptive"}
    assert receipt["speed"] == "forwarded"


@pytest.mark.parametrize(
    "content", [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
)
def test_content_without_a_word_in_the_other_format_is_refused(content: dict) -> None:
    with pytest.raises(FormatError) as caught:
        translate(FULL_OPENAI, messages=[{"role": "user", "content": [content]}])
    assert (caught.value.reason, caught.value.field) == ("PARAMETER_UNSUPPORTED", "messages[0].content[0]")


def test_arguments_that_are_no_object_are_flagged() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[broken"}}
    body, receipt = translate(FULL_OPENAI, messages=[{"role": "assistant", "tool_calls": [call]}])
    assert body["messages"][0]["content"][0]["input"] == {"arguments": "[broken"}
    assert receipt["messages[0].content[0].input"] == "translated"


def test_typed_conversations() -> None:
    image = Part()
    image.image.url = "https://example.com/a.png"
    chat = ChatInput(messages=[Message(role="user", content="hi"), Message(role="user", parts=[image])])
    chat.extension_json["vendor_x"] = "[1]"
    typed = WireFormat.WIRE_FORMAT_UNSPECIFIED
    body = check_openai(openai_chat.write_request(chat, "m", False, source=typed, output_cap=7)[0])
    assert body["max_completion_tokens"] == 7
    assert body["vendor_x"] == [1]
    written, receipt = anthropic_messages.write_request(chat, "m", False, source=typed, output_cap=7)
    assert check_anthropic(written)["max_tokens"] == 7
    assert [entry.name for entry in receipt if entry.outcome == "dropped"] == ["vendor_x"]
    with pytest.raises(FormatError, match="tool_result"):
        openai_chat.write_request(ChatInput(messages=[Message(role="tool", content="x")]), "m", False)


SEARCH = {"type": "web_search_20250305", "name": "web_search"}


def test_no_choice_among_tools_where_none_is_left() -> None:
    """A vendor refuses to be told how to choose when all tools were another vendor's own."""
    asked = {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [SEARCH],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    chat = anthropic_messages.read_request(json.dumps(asked).encode())
    written, receipt = openai_chat.write_request(chat, "m", False, source=ANTHROPIC)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & check_openai(written).keys()
    told = {entry.name: entry.outcome for entry in receipt}
    assert (told["tool_choice"], told["parallel_tool_calls"]) == ("dropped", "dropped")
    written, receipt = gemini.write_request(chat, "gemini-x", own=False)
    assert "toolConfig" not in json.loads(written)
    told = {entry.name: entry.outcome for entry in receipt}
    assert (told["tool_choice"], told["parallel_tool_calls"]) == ("dropped", "dropped")
    # One function among them is something to choose.
    chat.tools.add(name="look")
    body = check_openai(openai_chat.write_request(chat, "m", False, source=ANTHROPIC)[0])
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    body = json.loads(gemini.write_request(chat, "gemini-x", own=False)[0])
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}


@pytest.mark.parametrize("detail", ["auto", "high"])
def test_only_a_detail_that_says_something_is_lost(detail: str) -> None:
    part = {"type": "image_url", "image_url": {"url": PIXEL, "detail": detail}}
    changes = {"messages": [{"role": "user", "content": [part]}]}
    _, receipt = translate(FULL_OPENAI, **changes)
    chat = openai_chat.read_request(json.dumps({**FULL_OPENAI, **changes}).encode())
    converse = {entry.name: entry.outcome for entry in bedrock_converse.write_request(chat, "anthropic.c")[1]}
    name = "messages[0].content[0].detail"
    lost = None if detail == "auto" else "dropped"
    assert (receipt.get(name), converse.get(name)) == (lost, lost)


_SOURCE = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
_CITATION = {"type": "page_location", "cited_text": "x", "document_index": 0}
_CALL = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
BLOCKS: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": "t", "citations": [_CITATION]},
    "image": {"type": "image", "source": _SOURCE},
    "call": {**_CALL, "id": "t2"},
    "result": {"type": "tool_result", "tool_use_id": "t1", "content": "r"},
}
WRITERS: dict[str, Any] = {
    "openai_chat": lambda chat: openai_chat.write_request(chat, "m", False, source=ANTHROPIC),
    "openai_responses": lambda chat: openai_responses.write_request(chat, "m", False, source=ANTHROPIC),
    "gemini": lambda chat: gemini.write_request(chat, "gemini-2", own=False),
    "ollama": lambda chat: ollama.write_request(chat, "m", False),
    "bedrock": lambda chat: bedrock_converse.write_request(chat, "anthropic.claude-x"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("kind", "nested"), [*((kind, False) for kind in BLOCKS), ("text", True), ("image", True)]
)
def test_nothing_beside_a_block_is_lost_in_silence(writer: str, kind: str, nested: bool) -> None:
    """Unknown fields, citations and marks of a cached prefix: each is written, or in the receipt."""
    block = {**BLOCKS[kind], "vendor_x": 1, "cache_control": {"type": "ephemeral"}}
    if nested:
        block = {**BLOCKS["result"], "content": [block]}
    role = "assistant" if block["type"] == "tool_use" else "user"
    messages = [{"role": "assistant", "content": [_CALL]}, {"role": role, "content": [block]}]
    body = {"model": "m", "max_tokens": 9, "messages": messages}
    chat = anthropic_messages.read_request(json.dumps(body).encode())
    written, receipt = WRITERS[writer](chat)
    dropped = {entry.name.rpartition(".")[2] for entry in receipt if entry.outcome == "dropped"}
    assert "vendor_x" in dropped
    assert ("citations" in dropped) == (kind == "text")
    assert ("cache_control" in dropped) != (b"cachePoint" in written)


@pytest.mark.parametrize("writer", ["anthropic", "gemini", "bedrock", "ollama"])
def test_nothing_beside_a_result_of_a_tool_is_lost_in_silence(writer: str) -> None:
    function = {"name": "f", "arguments": "{}"}
    content = [{"type": "text", "text": "r", "vendor_x": 1}, {"type": "invented", "anything": 2}]
    messages = [
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c", "content": content},
    ]
    chat = openai_chat.read_request(json.dumps({"model": "m", "messages": messages}).encode())
    write = {"anthropic": lambda chat: anthropic_messages.write_request(chat, "m", False, source=OPENAI)}
    _, receipt = {**WRITERS, **write}[writer](chat)
    dropped = [entry.name for entry in receipt if entry.outcome == "dropped"]
    assert len([name for name in dropped if name.endswith(".vendor_x")]) == 1
    assert len([name for name in dropped if name.endswith("]")]) == 1


@pytest.mark.parametrize(
    ("writer", "nested"),
    [("titan", False), *((writer, nested) for writer in WRITERS for nested in (False, True))],
)
def test_search_results_are_read_by_every_model(writer: str, nested: bool) -> None:
    """As blocks where the format has them, else as text; what is lost of them is in the receipt."""
    found = {"type": "search_result", "source": "https://example.com/a", "title": "Tides", "vendor_x": 1}
    found |= {"content": [{"type": "text", "text": "High at noon."}], "citations": {"enabled": True}}
    found |= {"cache_control": {"type": "ephemeral"}}
    block = {**BLOCKS["result"], "content": [found]} if nested else found
    messages = [{"role": "assistant", "content": [_CALL]}] if nested else []
    body = {"model": "m", "max_tokens": 9, "messages": [*messages, {"role": "user", "content": [block]}]}
    chat = anthropic_messages.read_request(json.dumps(body).encode())
    titan = {"titan": lambda chat: titan_text.write_request(chat, "amazon.titan-text-lite-v1")}
    written, receipt = {**WRITERS, **titan}[writer](chat)
    dropped = {entry.name.rpartition(".")[2] for entry in receipt if entry.outcome == "dropped"}
    for text in (b"https://example.com/a", b"Tides", b"High at noon."):
        assert text in written
    if writer == "bedrock":
        content = check_request(written)["messages"][-1]["content"]
        content = content[0]["toolResult"]["content"] if nested else content
        sent = {"source": "https://example.com/a", "title": "Tides", "content": [{"text": "High at noon."}]}
        assert content[0] == {"searchResult": {**sent, "citations": {"enabled": True}}}
        assert dropped == ({"vendor_x", "cache_control"} if nested else {"vendor_x"})
        assert (b"cachePoint" in written) != nested
    else:
        assert dropped == {"vendor_x", "citations", "cache_control"}


def test_nothing_beside_a_text_for_a_model_of_text_is_lost_in_silence() -> None:
    part = {"type": "text", "text": "hi", "vendor_x": 1, "cache_control": {"type": "ephemeral"}}
    spoken = [{"role": "user", "name": "bob", "content": [part]}]
    spoken += [{"role": "assistant", "content": "ok", "vendor_y": 1}]
    chat = openai_chat.read_request(json.dumps({"model": "m", "messages": spoken}).encode())
    chat.messages[1].parts.add().reasoning.text = "hm"
    _, receipt = titan_text.write_request(chat, "amazon.titan-text-lite-v1")
    assert {entry.name for entry in receipt if entry.outcome == "dropped"} == {
        "messages[0].name",
        "messages[0].content[0].vendor_x",
        "cache_control",
        "messages[1].vendor_y",
        "messages[1].content[0]",
    }


def test_blank_text_that_is_left_out_is_named() -> None:
    blank = [{"type": "text", "text": " "}, {"type": "text", "text": "hi"}]
    body = {"model": "m", "messages": [{"role": "user", "content": blank}]}
    chat = openai_chat.read_request(json.dumps(body).encode())
    _, receipt = bedrock_converse.write_request(chat, "anthropic.claude-x")
    assert ("messages[0].content[0]", "translated") in {(each.name, each.outcome) for each in receipt}
