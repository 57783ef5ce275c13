"""Streams we write are read by the official clients as the answer they carry."""

from __future__ import annotations

import json

import anthropic
import httpx2
import openai
import pytest
from omnihub.common.v1.chat_pb2 import Finish, Part, Usage
from omnihub.common.v1.stream_pb2 import PartDelta, PartStart, PartStop

from services.formats import anthropic_messages, openai_chat
from tests.support import wire

EXTRA = {"cost": "0.1", "state": "complete"}


def write(writer: openai_chat.StreamWriter | anthropic_messages.StreamWriter) -> bytes:
    """Write an answer with a thought, a text and a tool call."""
    thought, text, call = Part(), Part(), Part()
    thought.reasoning.SetInParent()
    text.text.text = "Hel"
    call.tool_call.id, call.tool_call.name = "call_1", "f"
    usage = Usage(input_total=20, cache_read=5, output_total=9, output_reasoning=4)
    return b"".join(
        [
            writer.start(),
            writer.part_start(PartStart(index=0, part=thought)),
            writer.part_delta(PartDelta(index=0, reasoning="hm")),
            writer.part_delta(PartDelta(index=0, signature="c2ln")),
            writer.part_stop(PartStop(index=0)),
            writer.part_start(PartStart(index=1, part=text)),
            writer.part_delta(PartDelta(index=1, text="lo 🌍")),
            writer.part_stop(PartStop(index=1)),
            writer.part_start(PartStart(index=4, part=call)),
            writer.part_delta(PartDelta(index=4, arguments_json='{"x":')),
            writer.part_delta(PartDelta(index=4, arguments_json="1.0}")),
            writer.part_stop(PartStop(index=4)),
            writer.finish(Finish(reason="tool_calls", raw="tool_use"), usage, EXTRA),
        ]
    )


def serving(body: bytes, content_type: str = "text/event-stream") -> httpx2.MockTransport:
    return httpx2.MockTransport(
        lambda request: httpx2.Response(200, headers={"content-type": content_type}, content=body)
    )


def openai_client(body: bytes) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="k", base_url="http://x/v1", http_client=httpx2.Client(transport=serving(body)), max_retries=0
    )


def anthropic_client(body: bytes) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        api_key="k", base_url="http://x", http_client=httpx2.Client(transport=serving(body)), max_retries=0
    )


@pytest.mark.parametrize("include_usage", [True, False])
def test_openai_clients_read_our_stream(include_usage: bool) -> None:
    body = write(openai_chat.StreamWriter("m", "id_1", 7, include_usage))
    with openai_client(body) as client:
        stream = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "Hello 🌍"
    assert (
        "".join(delta.model_extra.get("reasoning_content", "") for delta in deltas if delta.model_extra)
        == "hm"
    )
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert {call.index for call in calls} == {0}
    assert calls[0].id == "call_1"
    assert "".join(call.function.arguments or "" for call in calls if call.function) == '{"x":1.0}'
    finish = next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason)
    assert finish.choices[0].finish_reason == "tool_calls"
    assert finish.model_extra == {"omnihub": EXTRA}
    assert body.endswith(b"data: [DONE]\n\n")
    assert bool(chunks[-1].usage) is include_usage
    if include_usage:
        assert chunks[-1].choices == []
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.total_tokens) == (20, 29)
    assert {chunk.id for chunk in chunks} == {"id_1"}


def test_anthropic_clients_read_our_stream() -> None:
    body = write(anthropic_messages.StreamWriter("m", "id_1", 7, True))
    with (
        anthropic_client(body) as client,
        client.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]
        ) as stream,
    ):
        message = stream.get_final_message()
    thought, text, call = message.content
    assert (thought.type, thought.thinking, thought.signature) == ("thinking", "hm", "c2ln")
    assert text.text == "Hello 🌍"
    assert (call.id, call.input) == ("call_1", {"x": 1.0})
    assert message.stop_reason == "tool_use"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (15, 5)
    assert message.usage.output_tokens == 9


def test_openai_clients_see_a_broken_stream() -> None:
    writer = openai_chat.StreamWriter("m", "id_1", 7, False)
    body = writer.start() + writer.error(
        type="server_error", code="stream_truncated", message="cut", extra=EXTRA
    )
    assert b"[DONE]" not in body
    with openai_client(body) as client, pytest.raises(openai.APIError, match="cut") as caught:
        list(
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], stream=True
            )
        )
    assert caught.value.code == "stream_truncated"


def test_anthropic_clients_see_a_broken_stream() -> None:
    writer = anthropic_messages.StreamWriter("m", "id_1", 7, False)
    body = writer.start() + writer.error(type="api_error", message="cut", request_id="req_1")
    with (
        anthropic_client(body) as client,
        pytest.raises(anthropic.APIStatusError, match="cut"),
        client.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]
        ) as stream,
    ):
        stream.get_final_message()


def test_a_stream_names_the_model_that_speaks() -> None:
    writer = openai_chat.StreamWriter("first", "id_1", 7, False)
    writer.start()
    writer.set_model("second")
    chunk = writer.part_delta(PartDelta(index=0, text="x"))
    assert json.loads(chunk[6:])["model"] == "second"


def test_raw_streams_are_closed_with_our_facts_in_the_finish() -> None:
    finish = b'{ "choices": [{"finish_reason": "stop", "delta": {}}] , "x": 1.50 }'
    closed = openai_chat.close_raw_stream([finish, b'{"usage":{}}'], EXTRA)
    first, second, done, _ = closed.split(b"\n\n")
    assert first.startswith(b'data: { "choices": [{"finish_reason": "stop", "delta": {}}] , "x": 1.50')
    assert json.loads(first[6:])["omnihub"] == EXTRA
    assert second == b'data: {"usage":{}}'
    assert done == b"data: [DONE]"
    assert openai_chat.close_raw_stream([finish]).startswith(b"data: " + finish + b"\n\n")
    tail = [json.dumps(event).encode() for event in wire.ANTHROPIC_EVENTS[-2:]]
    closed = anthropic_messages.close_raw_stream(tail, EXTRA)
    assert closed.startswith(b"event: message_delta\ndata: ")
    assert closed.endswith(b'event: message_stop\ndata: {"type": "message_stop"}\n\n')
    assert json.loads(closed.split(b"\n")[1][6:])["omnihub"] == EXTRA


def test_error_bodies() -> None:
    body = json.loads(openai_chat.write_error(type="t", code="c", message="m", param="p", request_id="r"))
    assert body == {"error": {"message": "m", "type": "t", "param": "p", "code": "c", "request_id": "r"}}
    body = json.loads(anthropic_messages.write_error(type="t", code="c", message="m", request_id="r"))
    assert body == {"type": "error", "error": {"type": "t", "message": "m"}, "request_id": "r"}


@pytest.mark.parametrize("module", [openai_chat, anthropic_messages])
def test_every_finish_has_a_word(module: object) -> None:
    from services.formats.anthropic_messages import outcome as anthropic_outcome
    from services.formats.openai_chat import outcome as openai_outcome

    outcome = openai_outcome if module is openai_chat else anthropic_outcome
    for reason in ("stop", "length", "tool_calls", "content_filter", "refusal", "pause", "context_exceeded"):
        assert outcome.write_finish(Finish(reason=reason))
    assert outcome.write_finish(Finish(reason="unknown", raw="odd")) == "odd"
    # What was broken off is no whole answer in any format.
    assert outcome.write_finish(Finish(reason="cancelled")) == outcome.write_finish(Finish(reason="error"))
    assert outcome.read_finish("odd").reason == "unknown"
