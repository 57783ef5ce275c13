"""A format read and written again keeps every field, unknown ones too."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.formats import anthropic_messages, openai_chat
from services.formats.errors import FormatError

EXAMPLES = 150
QUICK = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
text = st.text(st.characters(codec="utf-8"), max_size=12)
filled = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
json_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
unknown = st.dictionaries(st.sampled_from(["vendor_a", "x_b", "zeta", "Ünknown"]), json_value, max_size=2)
schema = st.fixed_dictionaries(
    {"type": st.just("object")}, optional={"properties": st.dictionaries(text, json_value)}
)
data = st.binary(min_size=1, max_size=9).map(lambda raw: base64.b64encode(raw).decode())
arguments = st.sampled_from(['{"a": 1.0}', "{}", '{"b":[1, 2]}', "not json", ""])
cache_control = st.sampled_from([{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}])


def record(required: dict[str, Any], optional: dict[str, Any] | None = None) -> st.SearchStrategy[dict]:
    """Return objects with these fields and perhaps unknown ones."""
    known = st.fixed_dictionaries(required, optional=optional or {})
    return st.builds(lambda fields, extra: {**extra, **fields}, known, unknown)


def just(value: object) -> st.SearchStrategy:
    return st.just(value)


openai_part = st.one_of(
    record({"type": just("text"), "text": text}, {"cache_control": cache_control}),
    record(
        {
            "type": just("image_url"),
            "image_url": record(
                {"url": data.map(lambda d: f"data:image/png;base64,{d}") | just("https://x/y.png")},
                {"detail": st.sampled_from(["low", "high", "auto", "original"])},
            ),
        }
    ),
    record({"type": just("input_audio"), "input_audio": record({"data": data, "format": just("wav")})}),
    record(
        {
            "type": just("file"),
            "file": record(
                {"file_data": data.map(lambda d: f"data:application/pdf;base64,{d}")}, {"filename": filled}
            )
            | record({"file_id": filled}),
        }
    ),
    record({"type": just("invented"), "anything": json_value}),
)
openai_call = record(
    {
        "id": filled,
        "type": just("function"),
        "function": record({"name": filled, "arguments": arguments}),
    }
) | record({"id": filled, "type": just("custom"), "custom": record({"name": filled, "input": text})})
openai_message = st.one_of(
    record(
        {
            "role": st.sampled_from(["system", "developer", "user"]),
            "content": text | st.lists(openai_part, max_size=3),
        },
        {"name": filled},
    ),
    record({"role": just("assistant"), "content": st.none() | text}, {"refusal": st.none() | filled}),
    record(
        {"role": just("assistant"), "tool_calls": st.lists(openai_call, min_size=1, max_size=3)},
        {"content": st.none() | text, "audio": json_value, "reasoning_content": text},
    ),
    record({"role": just("tool"), "tool_call_id": filled, "content": text}),
)
openai_tool = record(
    {
        "type": just("function"),
        "function": record(
            {"name": filled}, {"description": text, "parameters": schema, "strict": st.none() | st.booleans()}
        ),
    },
    {"cache_control": cache_control},
) | record({"type": just("custom"), "custom": json_value})
openai_request = record(
    {"messages": st.lists(openai_message, min_size=1, max_size=4)},
    {
        "temperature": st.none() | st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "max_tokens": st.none() | st.integers(1, 10**6),
        "max_completion_tokens": st.integers(1, 10**6),
        "seed": st.integers(-(2**40), 2**40),
        "top_k": st.integers(0, 100),
        "stop": st.none() | text | st.lists(text, min_size=1, max_size=3),
        "tools": st.lists(openai_tool, min_size=1, max_size=2),
        "tool_choice": st.sampled_from(
            [
                "auto",
                "none",
                "required",
                {"type": "function", "function": {"name": "f"}},
                {"type": "allowed_tools"},
            ]
        ),
        "parallel_tool_calls": st.booleans(),
        "reasoning_effort": st.none() | st.sampled_from(["none", "low", "high"]),
        "user": text,
        "response_format": st.sampled_from([{"type": "json_object"}, {"type": "text"}])
        | record({"type": just("json_schema"), "json_schema": record({"name": filled, "schema": schema})}),
        "logit_bias": json_value,
        "metadata": json_value,
        "n": st.integers(1, 4),
    },
)


def canonical(value: Any) -> Any:
    """Write alike what means the same: no content and null content of an assistant."""
    if isinstance(value, dict):
        fields = {name: canonical(inner) for name, inner in value.items()}
        if fields.get("role") == "assistant" and "content" not in fields:
            fields["content"] = None
        return fields
    return [canonical(inner) for inner in value] if isinstance(value, list) else value


@QUICK
@given(openai_request)
def test_openai_requests(body: dict) -> None:
    chat = openai_chat.read_request(json.dumps({"model": "m", **body}).encode())
    written, receipt = openai_chat.write_request(chat, "m", False)
    assert canonical(json.loads(written)) == canonical({"model": "m", **body})
    assert not [entry.name for entry in receipt if entry.outcome == "dropped"]


@QUICK
@given(openai_request)
def test_openai_requests_are_accounted_for_in_the_other_format(body: dict) -> None:
    """Whatever is sent is either written, or named as dropped, or refused with the place named."""
    chat = openai_chat.read_request(json.dumps({"model": "m", **body}).encode())
    try:
        written, receipt = anthropic_messages.write_request(chat, "m", False, source=1)
    except FormatError as error:
        refused = error
    else:
        refused = None
        json.loads(written)
    if refused is not None:
        assert refused.reason == "PARAMETER_UNSUPPORTED"
        assert refused.field.startswith("messages[")
        return
    named = {entry.name.partition("[")[0].partition(".")[0] for entry in receipt}
    aliases = {"max_completion_tokens": "max_tokens"}
    for name, value in body.items():
        if value not in (None, "", [], {}) and name != "messages":
            assert {name, aliases.get(name, name)} & named, name


cited = st.lists(record({"type": just("page_location"), "cited_text": text}), min_size=1, max_size=2)
anthropic_text = record(
    {"type": just("text"), "text": text}, {"cache_control": cache_control, "citations": cited}
)
anthropic_image = record(
    {
        "type": just("image"),
        "source": st.one_of(
            st.fixed_dictionaries({"type": just("base64"), "media_type": just("image/png"), "data": data}),
            st.fixed_dictionaries({"type": just("url"), "url": filled}),
            st.fixed_dictionaries({"type": just("file"), "file_id": filled}),
            record({"type": just("invented")}),
        ),
    },
    {"cache_control": cache_control},
)
anthropic_document = record(
    {
        "type": just("document"),
        "source": st.one_of(
            st.fixed_dictionaries({"type": just("text"), "media_type": just("text/plain"), "data": text}),
            st.fixed_dictionaries(
                {"type": just("base64"), "media_type": just("application/pdf"), "data": data}
            ),
            st.fixed_dictionaries({"type": just("content"), "content": text}),
        ),
    },
    {"title": filled, "context": text},
)
anthropic_user_block = st.one_of(
    anthropic_text,
    anthropic_image,
    anthropic_document,
    record(
        {"type": just("tool_result"), "tool_use_id": filled},
        {"content": text | st.lists(anthropic_image, min_size=1, max_size=2), "is_error": just(True)},
    ),
    record({"type": just("search_result"), "anything": json_value}),
)
anthropic_assistant_block = st.one_of(
    anthropic_text,
    record(
        {"type": just("tool_use"), "id": filled, "name": filled, "input": st.dictionaries(text, json_value)}
    ),
    record({"type": just("thinking"), "thinking": text, "signature": filled}),
    record({"type": just("redacted_thinking"), "data": filled}),
    record({"type": just("server_tool_use"), "anything": json_value}),
)
anthropic_message = record(
    {"role": just("user"), "content": text | st.lists(anthropic_user_block, max_size=3)}
) | record({"role": just("assistant"), "content": text | st.lists(anthropic_assistant_block, max_size=3)})
anthropic_request = record(
    {"messages": st.lists(anthropic_message, min_size=1, max_size=4), "max_tokens": st.integers(1, 10**6)},
    {
        "system": filled | st.lists(anthropic_text, min_size=1, max_size=2),
        "temperature": st.floats(0, 1),
        "top_k": st.integers(0, 100),
        "stop_sequences": st.lists(text, min_size=1, max_size=3),
        "metadata": st.fixed_dictionaries({"user_id": filled}) | just({}) | just({"user_id": None}),
        "thinking": st.sampled_from([{"type": "enabled", "budget_tokens": 2048}, {"type": "adaptive"}]),
        "output_config": record(
            {}, {"effort": just("max"), "format": record({"type": just("json_schema"), "schema": schema})}
        ),
        "tool_choice": record(
            {"type": st.sampled_from(["auto", "any", "none"])}, {"disable_parallel_tool_use": st.booleans()}
        ),
        "tools": st.lists(
            record(
                {"name": filled, "input_schema": schema},
                {
                    "description": text,
                    "type": just("custom"),
                    "strict": st.booleans(),
                    "cache_control": cache_control,
                },
            )
            | record({"type": just("web_search_20250305"), "name": just("web_search")}),
            min_size=1,
            max_size=2,
        ),
        "service_tier": just("auto"),
    },
)


@QUICK
@given(anthropic_request)
def test_anthropic_requests(body: dict) -> None:
    chat = anthropic_messages.read_request(json.dumps({"model": "m", **body}).encode())
    written, receipt = anthropic_messages.write_request(chat, "m", False)
    assert json.loads(written) == {"model": "m", **body}
    assert not [entry.name for entry in receipt if entry.outcome == "dropped"]


@QUICK
@given(anthropic_request)
def test_anthropic_requests_are_accounted_for_in_the_other_format(body: dict) -> None:
    chat = anthropic_messages.read_request(json.dumps({"model": "m", **body}).encode())
    try:
        written, receipt = openai_chat.write_request(chat, "m", False, source=2)
    except FormatError as error:
        refused = error
    else:
        refused = None
        json.loads(written)
    if refused is not None:
        assert refused.reason == "PARAMETER_UNSUPPORTED"
        assert refused.field.startswith("messages[")
        return
    named = {entry.name.partition("[")[0].partition(".")[0] for entry in receipt}
    aliases = {
        "stop_sequences": "stop",
        "metadata": "user",
        "system": "messages",
        "thinking": "reasoning_effort",
    }
    for name, value in body.items():
        if value not in (None, "", [], {}, {"user_id": None}) and name not in {"messages", "system"}:
            assert {name, aliases.get(name, name)} & named, name


openai_response = record(
    {
        "id": filled,
        "object": just("chat.completion"),
        "created": just(7),
        "model": filled,
        "choices": st.lists(
            record(
                {
                    "index": just(0),
                    "message": record(
                        {
                            "role": just("assistant"),
                            "content": st.none() | text,
                            "refusal": st.none() | filled,
                        },
                        {
                            "tool_calls": st.lists(openai_call, min_size=1, max_size=2),
                            "reasoning_content": filled,
                        },
                    ),
                    "finish_reason": st.sampled_from(
                        ["stop", "length", "tool_calls", "function_call", "odd"]
                    ),
                },
                {"logprobs": json_value},
            ),
            min_size=1,
            max_size=2,
        ),
        "usage": record({"prompt_tokens": st.integers(0, 99), "completion_tokens": st.integers(0, 99)}),
    },
    {"system_fingerprint": filled},
)


@QUICK
@given(openai_response)
def test_openai_responses(document: dict) -> None:
    answer = openai_chat.read_response(json.dumps(document).encode())
    assert answer.usage is not None
    written = openai_chat.write_response(
        answer.message, answer.finish, answer.usage, answer.response_id, answer.model, 7
    )
    assert json.loads(written) == document


anthropic_response = record(
    {
        "id": filled,
        "type": just("message"),
        "role": just("assistant"),
        "model": filled,
        "content": st.lists(
            st.one_of(
                record({"type": just("text"), "text": text, "citations": st.none() | cited}),
                record({"type": just("tool_use"), "id": filled, "name": filled, "input": schema}),
                record({"type": just("thinking"), "thinking": text, "signature": text}),
                record({"type": just("server_tool_use"), "anything": json_value}),
            ),
            max_size=3,
        ),
        "stop_reason": st.sampled_from(["end_turn", "tool_use", "refusal", "odd"]),
        "stop_sequence": st.none() | filled,
        "usage": record({"input_tokens": st.integers(0, 99), "output_tokens": st.integers(0, 99)}),
    },
    {"container": json_value},
)


@QUICK
@given(anthropic_response)
def test_anthropic_responses(document: dict) -> None:
    answer = anthropic_messages.read_response(json.dumps(document).encode())
    assert answer.usage is not None
    written = anthropic_messages.write_response(
        answer.message, answer.finish, answer.usage, answer.response_id, answer.model, 7
    )
    assert json.loads(written) == document
