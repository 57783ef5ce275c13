"""Thoughts with details: through every format and back, and never to a vendor they are not of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from omnihub.common.v1.chat_pb2 import ChatInput, Finish, Message, Part, Usage, WireFormat
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart

from services.formats import anthropic_messages, bedrock_converse, gemini, openai_chat, openai_responses

ANTHROPIC = WireFormat.WIRE_FORMAT_ANTHROPIC_MESSAGES
RESPONSES = WireFormat.WIRE_FORMAT_OPENAI_RESPONSES
FORMAT = {"format": "anthropic-claude-v1"}
SIGNED = {"type": "reasoning.text", "text": "Let me see.", "signature": "c2ln", "index": 0, **FORMAT}
SUMMARY = {"type": "reasoning.summary", "summary": "It adds.", "id": None, "index": 1, "format": "x-v1"}
LOCKED = {"type": "reasoning.encrypted", "data": "RU5D", "id": "rs_1", "index": 2, "format": "x-v1"}
DETAILS = [SIGNED, SUMMARY, LOCKED]
WITHOUT_NULLS = [{name: value for name, value in each.items() if value is not None} for each in DETAILS]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGE = {
    "role": "assistant",
    "content": "Four.",
    "reasoning": "Let me see.It adds.",
    "reasoning_details": DETAILS,
    "tool_calls": [CALL],
}


def answer() -> Message:
    choice = {"index": 0, "message": MESSAGE, "finish_reason": "stop"}
    return openai_chat.read_response(json.dumps({"id": "a", "choices": [choice]}).encode()).message


def streamed() -> Message:
    """The same answer in pieces, put together again from its events."""
    pieces: list[dict[str, Any]] = [
        {"reasoning": "Let ", "reasoning_details": [{**SIGNED, "text": "Let ", "signature": None}]},
        {"reasoning": "me see.", "reasoning_details": [{**SIGNED, "text": "me see.", "signature": None}]},
        {"reasoning_details": [{"type": "reasoning.text", "index": 0, "signature": "c2ln", **FORMAT}]},
        {"reasoning": "It adds.", "reasoning_details": [SUMMARY]},
        {"reasoning_details": [LOCKED]},
        {"content": "Four."},
        {"tool_calls": [{"index": 0, **CALL}]},
    ]
    reader = openai_chat.StreamReader()
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in pieces]
    events = [event for chunk in chunks for event in reader.read(b"", json.dumps(chunk).encode())]
    parts: list[Part] = []
    for event in [*events, *reader.finish()]:
        if isinstance(event, PartStart):
            assert event.index == len(parts)
            parts.append(event.part)
        elif isinstance(event, PartDelta):
            part = parts[event.index]
            if event.WhichOneof("delta") == "reasoning":
                part.reasoning.text += event.reasoning
            elif event.WhichOneof("delta") == "signature":
                part.reasoning.signature += event.signature
            elif event.WhichOneof("delta") == "text":
                part.text.text += event.text
            else:
                part.tool_call.arguments_json += event.arguments_json
    return Message(role="assistant", parts=parts)


ANSWERS = pytest.mark.parametrize(("given", "sent"), [(answer(), DETAILS), (streamed(), WITHOUT_NULLS)])


def through_anthropic(message: Message, **more: Any) -> ChatInput:
    """Answer a client of this format, and read what it sends with its next turn."""
    written = anthropic_messages.write_response(message, Finish(reason="stop"), Usage(), "a", "m", 0)
    turn = {"role": "assistant", "content": json.loads(written)["content"]}
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "2+2?"}, turn], **more}
    return anthropic_messages.read_request(json.dumps(body).encode())


def through_responses(message: Message) -> ChatInput:
    written = openai_responses.write_response(message, Finish(reason="stop"), Usage(), "a", "m", 0)
    given = [{"role": "user", "content": "2+2?"}, *json.loads(written)["output"]]
    return openai_responses.read_request(json.dumps({"model": "m", "input": given}).encode())


def typed(message: Message) -> ChatInput:
    return ChatInput(messages=[Message(role="user", content="2+2?"), message])


SURFACES: dict[str, Any] = {"anthropic": through_anthropic, "responses": through_responses, "typed": typed}
SOURCES = {"anthropic": ANTHROPIC, "responses": RESPONSES, "typed": WireFormat.WIRE_FORMAT_UNSPECIFIED}


@ANSWERS
@pytest.mark.parametrize("surface", SURFACES)
def test_thoughts_come_back_with_their_details(surface: str, given: Message, sent: list[Any]) -> None:
    chat = SURFACES[surface](given)
    source = SOURCES[surface]
    written, receipt = openai_chat.write_request(chat, "m", False, source=source, details=True)
    back = [message for message in json.loads(written)["messages"] if message["role"] == "assistant"]
    assert [each for message in back for each in message.get("reasoning_details", ())] == sent
    assert not [entry for entry in receipt if entry.outcome == "dropped"]


@ANSWERS
def test_the_thoughts_of_an_answer_are_parts(given: Message, sent: list[Any]) -> None:
    kinds = [part.WhichOneof("kind") for part in given.parts]
    assert kinds == ["reasoning"] * 3 + ["text", "tool_call"]
    assert [part.reasoning.text for part in given.parts[:3]] == ["Let me see.", "It adds.", ""]
    assert [part.reasoning.redacted for part in given.parts[:3]] == [False, False, True]


def test_an_answer_that_is_passed_on_keeps_its_own_form() -> None:
    written = openai_chat.write_response(answer(), Finish(reason="stop"), Usage(), "a", "m", 0)
    message = json.loads(written)["choices"][0]["message"]
    assert {name: value for name, value in message.items() if name != "refusal"} == MESSAGE


WRITERS: dict[str, Any] = {
    "anthropic": lambda chat: anthropic_messages.write_request(chat, "m", False, source=ANTHROPIC),
    "bedrock": lambda chat: bedrock_converse.write_request(chat, "anthropic.claude-x"),
    "gemini": lambda chat: gemini.write_request(chat, "gemini-3-pro", own=False),
    "openai": lambda chat: openai_chat.write_request(chat, "m", False, source=ANTHROPIC),
    "responses": lambda chat: openai_responses.write_request(chat, "m", False, source=ANTHROPIC),
}


@ANSWERS
@pytest.mark.parametrize("writer", WRITERS)
def test_no_other_vendor_gets_them(writer: str, given: Message, sent: list[Any]) -> None:
    written, receipt = WRITERS[writer](through_anthropic(given))
    assert b"omnihub" not in written
    assert b"Let me see." not in written
    assert b"Four." in written
    assert len([entry for entry in receipt if entry.outcome == "dropped"]) == 3


def test_typed_callers_send_them_to_no_other_vendor_either() -> None:
    """What a typed answer holds of them stands beside its parts, too."""
    written, receipt = openai_chat.write_request(typed(answer()), "m", False, source=SOURCES["typed"])
    assert b"reasoning" not in written
    assert b"Let me see." not in written
    assert len([entry for entry in receipt if entry.outcome == "dropped"]) == 3


@pytest.mark.parametrize("vendor", ["anthropic", "bedrock"])
@pytest.mark.parametrize(("kind", "goes_on"), [("enabled", False), ("adaptive", True)])
def test_nobody_thinks_on_after_a_call_whose_thoughts_stay_behind(
    vendor: str, kind: str, goes_on: bool
) -> None:
    """With a budget the vendor refuses the whole request then."""
    thinking = {"type": kind} | ({} if goes_on else {"budget_tokens": 2048})
    chat = through_anthropic(answer(), max_tokens=5000, thinking=thinking)
    written, receipt = WRITERS[vendor](chat)
    assert (b'"thinking"' in written) == goes_on
    told = [entry.name for entry in receipt if "came without thoughts" in entry.detail]
    assert bool(told) != goes_on
