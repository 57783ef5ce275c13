"""What admission reads from a body, and how it says what is wrong."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from services.formats import anthropic_messages, openai_chat
from services.formats.errors import FormatError

MESSAGES = [{"role": "user", "content": "hi"}]


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": MESSAGES, "max_tokens": 5, **fields}).encode()


def test_facts_of_an_openai_body() -> None:
    facts = openai_chat.read_facts(
        body(stream=True, stream_options={"include_usage": True}, n=3, tools=[{}], user="u", temperature=0.5)
    )
    assert (facts.model, facts.stream, facts.include_usage, facts.max_tokens, facts.n) == (
        "m",
        True,
        True,
        5,
        3,
    )
    assert (facts.has_tools, facts.has_schema, facts.user, facts.temperature) == (True, False, "u", 0.5)
    assert json.loads(bytes(facts.messages)) == MESSAGES
    assert openai_chat.read_facts(body(max_completion_tokens=9)).max_tokens == 9
    bare = openai_chat.read_facts(b'{"model":"m","messages":[{}]}')
    assert (bare.stream, bare.include_usage, bare.max_tokens, bare.n) == (False, False, None, 1)
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
    assert openai_chat.read_facts(body(response_format=schema)).has_schema


def test_facts_of_an_anthropic_body() -> None:
    facts = anthropic_messages.read_facts(body(stream=True, metadata={"user_id": "u"}))
    assert (facts.model, facts.stream, facts.max_tokens, facts.user) == ("m", True, 5, "u")


@pytest.mark.parametrize("module", [openai_chat, anthropic_messages])
@pytest.mark.parametrize(
    ("given", "reason", "field", "says"),
    [
        (b"", "MALFORMED_BODY", "", "truncated"),
        (b"{", "MALFORMED_BODY", "", "truncated"),
        (b"[]", "MALFORMED_BODY", "", "expected object, got list"),
        (b'{"model": "\xff"}', "MALFORMED_BODY", "", "utf-8"),
        (b"{}", "INVALID_ARGUMENT", "model", "name the model"),
        (b'{"model": null}', "INVALID_ARGUMENT", "model", "name the model"),
        (b'{"model": 5}', "INVALID_ARGUMENT", "model", "expected string, got whole number"),
        (b'{"model": "m"}', "INVALID_ARGUMENT", "messages", "at least one"),
        (body(messages=[]), "INVALID_ARGUMENT", "messages", "at least one"),
        (body(messages="hi"), "INVALID_ARGUMENT", "messages", "expected a list"),
        (body(messages=None), "INVALID_ARGUMENT", "messages", "expected a list"),
        (body(stream="yes"), "INVALID_ARGUMENT", "stream", "expected true or false, got string"),
        (body(max_tokens=0), "INVALID_ARGUMENT", "max_tokens", "positive"),
        (body(max_tokens=1.5), "INVALID_ARGUMENT", "max_tokens", "expected whole number, got number"),
        (body(temperature="hot"), "INVALID_ARGUMENT", "temperature", "expected number, got string"),
    ],
)
def test_bad_bodies(module: ModuleType, given: bytes, reason: str, field: str, says: str) -> None:
    with pytest.raises(FormatError) as caught:
        module.read_facts(given)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert says in caught.value.message
    assert [violation.field for violation in caught.value.violations] == ([field] if field else [])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (body(stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (body(n=0), "n"),
        (body(max_completion_tokens=-1), "max_tokens"),
    ],
)
def test_bad_openai_bodies(given: bytes, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        openai_chat.read_facts(given)
    assert caught.value.field == field


def test_anthropic_needs_a_limit() -> None:
    with pytest.raises(FormatError, match="max_tokens"):
        anthropic_messages.read_facts(b'{"model":"m","messages":[{}]}')


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([5], "messages[0]"),
        ([{}], "messages[0].role"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "messages[0].content[0].image_url.url",
        ),
        ([{"role": "assistant", "tool_calls": [5]}], "messages[0].tool_calls[0]"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
    ],
)
def test_a_wrong_openai_message_is_named(messages: list, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        openai_chat.read_request(body(messages=messages))
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"stop": 5}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"max_tokens": -5}, "max_tokens"),
    ],
)
def test_a_wrong_openai_parameter_is_named(fields: dict, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        openai_chat.read_request(body(**fields))
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", field)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
            "messages[0].content[0].tool_use_id",
        ),
        ({"system": [{"type": "text"}]}, "system[0].text"),
        ({"tools": [{}]}, "tools[0].name"),
        ({"tool_choice": {"type": "perhaps"}}, "tool_choice.type"),
    ],
)
def test_a_wrong_anthropic_field_is_named(fields: dict, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        anthropic_messages.read_request(body(**fields))
    assert (caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", field)
