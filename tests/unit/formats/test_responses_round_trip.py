"""Responses read and written again keep every field; in another format each is accounted for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omnihub.common.v1.chat_pb2 import WireFormat

from services.formats import anthropic_messages, openai_chat, openai_responses
from services.formats.errors import FormatError
from tests.unit.formats.test_round_trip import (
    QUICK,
    anthropic_request,
    arguments,
    data,
    filled,
    json_value,
    just,
    openai_request,
    record,
    schema,
    text,
)

LOGPROBS = "message.output_text.logprobs"
RESPONSES = WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
envelope = {"id": filled, "status": st.sampled_from(["completed", "incomplete"])}
part = st.one_of(
    record({"type": just("input_text"), "text": text}),
    record({"type": just("output_text"), "text": text}, {"annotations": json_value, "logprobs": just([])}),
    record({"type": just("refusal"), "refusal": text}),
    record(
        {"type": just("input_image"), "image_url": data.map(lambda d: f"data:image/png;base64,{d}") | filled},
        {"detail": st.sampled_from(["low", "auto", "original"]), "file_id": st.none()},
    ),
    record({"type": just("input_image"), "file_id": filled}, {"detail": just("auto")}),
    record(
        {"type": just("input_file"), "file_data": data.map(lambda d: f"data:application/pdf;base64,{d}")},
        {"filename": text},
    ),
    record({"type": just("input_file"), "file_url": filled, "file_id": filled}),
    record({"type": just("input_file"), "file_url": filled}),
    record(
        {"type": just("input_audio"), "input_audio": record({"data": data, "format": just("wav")})},
    ),
    record({"type": just("computer_screenshot"), "anything": json_value}),
)
content = text | st.lists(part, max_size=3)
item = st.one_of(
    record(
        {"role": st.sampled_from(["user", "system", "developer"]), "content": content},
        {**envelope, "type": just("message") | st.none()},
    ),
    record(
        {"role": just("assistant"), "content": content},
        {**envelope, "type": just("message"), "phase": just("commentary")},
    ),
    record(
        {"type": just("function_call"), "call_id": filled, "name": filled, "arguments": arguments}, envelope
    ),
    record({"type": just("function_call_output"), "call_id": filled, "output": content}, envelope),
    record(
        {
            "type": just("reasoning"),
            "summary": st.lists(record({"type": just("summary_text"), "text": text}), max_size=2),
        },
        {
            **envelope,
            "encrypted_content": st.none() | text,
            "content": st.lists(record({"type": just("reasoning_text"), "text": text}), max_size=2),
        },
    ),
    record({"type": just("web_search_call"), "anything": json_value}),
    record({"type": just("computer_call_output"), "anything": json_value}),
)
reference = record({"type": just("item_reference"), "id": filled}) | st.fixed_dictionaries({"id": filled})
tool = record(
    {"type": just("function"), "name": filled},
    {"description": text, "parameters": st.none() | schema, "strict": st.none() | st.booleans()},
) | record({"type": st.sampled_from(["web_search", "mcp"]), "anything": json_value})
stateless: dict[str, Any] = {
    "instructions": st.none() | text,
    "temperature": st.none() | st.floats(0, 2),
    "top_p": st.floats(0, 1),
    "max_output_tokens": st.none() | st.integers(1, 10**6),
    "tools": st.lists(tool, max_size=2),
    "tool_choice": st.sampled_from(
        [
            "auto",
            "none",
            "required",
            None,
            {"type": "function", "name": "f"},
            {"type": "function", "name": "f", "more": 1},
            {"type": "web_search"},
            {"type": "allowed_tools", "mode": "auto", "tools": []},
        ]
    ),
    "parallel_tool_calls": st.none() | st.booleans(),
    "reasoning": st.none()
    | record({}, {"effort": st.sampled_from(["low", "high", None]), "summary": just("auto")}),
    "text": record(
        {},
        {
            "format": st.sampled_from([{"type": "text"}, {"type": "json_object"}])
            | record({"type": just("json_schema"), "name": filled, "schema": schema}),
            "verbosity": st.sampled_from(["low", None]),
        },
    ),
    "user": text,
    "metadata": json_value,
    "include": st.none()
    | st.lists(st.sampled_from(["reasoning.encrypted_content", LOGPROBS, "x"]), max_size=2),
    "truncation": st.sampled_from(["auto", "disabled", None]),
    "service_tier": st.sampled_from(["auto", "flex"]),
    "store": st.none() | just(False),
    "background": st.none() | just(False),
    "stream_options": st.none() | just({"include_obfuscation": False}),
    "top_logprobs": st.integers(0, 20),
    "max_tool_calls": st.integers(1, 9),
    "prompt_cache_key": text,
}
request = record({}, {**stateless, "input": text | st.none() | st.lists(item | reference, max_size=5)})
stateful_request = record(
    {"input": st.lists(item | reference, max_size=3)},
    {
        **stateless,
        "store": just(True),
        "background": just(True),
        "previous_response_id": filled,
        "conversation": filled | record({"id": filled}),
        "prompt": record({"id": filled}),
    },
)
portable_request = record({"input": filled | st.lists(item, min_size=1, max_size=5)}, stateless)


@QUICK
@given(request | stateful_request)
def test_requests(body: dict) -> None:
    chat = openai_responses.read_request(json.dumps({"model": "m", **body}).encode())
    written, receipt = openai_responses.write_request(chat, "m", False)
    assert json.loads(written) == {"model": "m", **body}
    assert not [entry.name for entry in receipt if entry.outcome == "dropped"]


def is_reference(item: dict) -> bool:
    return item.get("type", "item_reference" if "role" not in item else "") == "item_reference"


@QUICK
@given(stateful_request)
def test_state_of_the_vendor_is_refused_elsewhere(body: dict) -> None:
    state = [
        n for n in ("previous_response_id", "conversation", "prompt", "store", "background") if body.get(n)
    ]
    if any(map(is_reference, body["input"])):
        state.append("input")
    raw = json.dumps({"model": "m", **body}).encode()
    if not state:
        openai_responses.read_portable(raw)
        return
    with pytest.raises(FormatError) as caught:
        openai_responses.read_portable(raw)
    assert caught.value.reason == "PARAMETER_UNSUPPORTED"
    assert caught.value.field in state


# What another format has under another name.
ALIASES = {
    "max_output_tokens": {"max_tokens"},
    "reasoning": {"reasoning_effort", "reasoning"},
    "text": {"response_format", "verbosity", "text"},
    "instructions": {"messages"},
}
# Refused when it matters, else the same everywhere.
SILENT = {"input", "instructions", "store", "background", "stream_options"}


def accounted(body: dict, names: set[str]) -> None:
    for name, value in body.items():
        if name in SILENT or value in (None, "", [], {}):
            continue
        if name == "include" and set(value) <= {"reasoning.encrypted_content", LOGPROBS}:
            assert LOGPROBS not in value or "logprobs" in names
            continue
        if name == "top_logprobs" and value == 0:
            continue
        if name == "truncation" and value == "disabled":
            continue
        if isinstance(value, dict) and all(inner in (None, "", [], {}) for inner in value.values()):
            continue
        if name == "parallel_tool_calls" or (name == "text" and value.get("format") == {"type": "text"}):
            continue
        assert ALIASES.get(name, {name}) & names, name


def written_or_refused(module: Any, chat: Any, source: Any) -> tuple[bytes, list[Any]] | None:
    """Return body and receipt; None when content was refused with the place named."""
    try:
        body, receipt = module.write_request(chat, "m", False, source=source)
    except FormatError as error:
        refused = error
    else:
        return body, receipt
    assert refused.reason == "PARAMETER_UNSUPPORTED"
    assert refused.field.startswith("messages[")
    return None


@pytest.mark.parametrize("module", [openai_chat, anthropic_messages])
@QUICK
@given(body=portable_request)
def test_requests_are_accounted_for_in_other_formats(module: Any, body: dict) -> None:
    """Whatever is sent is either written, or named as dropped, or refused with the place named."""
    chat = openai_responses.read_portable(json.dumps({"model": "m", **body}).encode())
    written = written_or_refused(module, chat, RESPONSES)
    if written is None:
        return
    body_written, receipt = written
    json.loads(body_written)
    accounted(body, {entry.name.partition("[")[0].partition(".")[0] for entry in receipt})


@QUICK
@given(openai_request)
def test_chats_are_accounted_for(body: dict) -> None:
    chat = openai_chat.read_request(json.dumps({"model": "m", **body}).encode())
    check_foreign(chat, 1, body, {"max_completion_tokens": "max_tokens"})


@QUICK
@given(anthropic_request)
def test_messages_are_accounted_for(body: dict) -> None:
    chat = anthropic_messages.read_request(json.dumps({"model": "m", **body}).encode())
    aliases = {"stop_sequences": "stop", "metadata": "user", "system": "messages"}
    check_foreign(chat, 2, {k: v for k, v in body.items() if k != "system"}, aliases)


def check_foreign(chat: Any, source: Any, body: dict, aliases: dict[str, str]) -> None:
    written = written_or_refused(openai_responses, chat, source)
    if written is None:
        return
    body_written, receipt = written
    openai_responses.read_request(body_written)
    named = {entry.name.partition("[")[0].partition(".")[0] for entry in receipt}
    for name, value in body.items():
        if value in (None, "", [], {}, {"user_id": None}) or name in ("messages", "parallel_tool_calls"):
            continue
        read = (name in ("thinking", "output_config")) and bool(
            chat.reasoning_effort or chat.response_schema_json
        )
        assert read or {name, aliases.get(name, name)} & named, name


output_item = st.one_of(
    record(
        {
            "type": just("message"),
            "role": just("assistant"),
            "content": st.lists(
                record({"type": just("output_text"), "text": text, "annotations": just([])})
                | record({"type": just("refusal"), "refusal": text}),
                max_size=2,
            ),
        },
        envelope,
    ),
    record(
        {"type": just("function_call"), "call_id": filled, "name": filled, "arguments": arguments}, envelope
    ),
    record({"type": just("reasoning"), "summary": just([])}, {"encrypted_content": text, **envelope}),
    record({"type": just("image_generation_call"), "result": text}),
    record({"type": just("shell_call_output"), "anything": json_value}),
)
response = record(
    {
        "id": filled,
        "object": just("response"),
        "created_at": just(7),
        "model": filled,
        "output": st.lists(output_item, max_size=4),
        "usage": st.none()
        | record({"input_tokens": st.integers(0, 99), "output_tokens": st.integers(0, 99)}),
    },
    {
        "status": st.sampled_from(["completed", "incomplete", "cancelled", "queued"]),
        "incomplete_details": st.none() | record({"reason": just("max_output_tokens")}),
        "tools": just([]),
    },
)


@QUICK
@given(response)
def test_responses(document: dict) -> None:
    answer = openai_responses.read_response(json.dumps(document).encode())
    written = openai_responses.write_response(
        answer.message, answer.finish, answer.usage, answer.response_id, answer.model, 7
    )
    assert json.loads(written) == document
