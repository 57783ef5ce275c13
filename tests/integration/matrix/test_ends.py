"""Rows 13 to 17 and 36: what an answer cost, how it ended, and calls that are none."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from anthropic.types.stop_reason import StopReason
from botocore.session import Session
from google.genai import types
from omnihub.common.v1.chat_pb2 import Usage
from omnihub.provider.v1.provider_service_api import ProviderService
from openai.types.chat.chat_completion_chunk import Choice

from tests.support import gemini_wire, ollama_wire, wire, wire_bedrock
from tests.support.fault_server import FaultServer, answer
from tests.support.providers import chat
from tests.support.vendors import TEXT, VENDORS, Ask, Said
from tests.support.vendors.answers import CONVERSE_TEXT, OPENAI_TEXT, anthropic, responses
from tests.support.vendors.outcomes import Outcome, read, streamed, whole
from tests.support.vendors.table import CHAT, asks
from tests.unit.formats.test_gemini import FINISHES as GEMINI_FINISHES

pytestmark = pytest.mark.asyncio(loop_scope="module")
SHAPED = tuple(name for name, vendor in VENDORS.items() if vendor.raw_format == CHAT)


async def both(server: FaultServer, client: ProviderService, ask: Ask, said: Said) -> tuple[Outcome, Outcome]:
    """Return what comes of an answer, whole and streamed."""
    server.script = answer(said.whole)
    first = await whole(client, ask)
    server.script = ask.vendor.script(ask.vendor.frames(said))
    return first, await streamed(client, ask)


_OPENAI_DETAILS = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 2, "cache_write_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 1},
}
_OPENAI_COUNTED = Usage(
    input_total=20,
    cache_read=5,
    cache_write=3,
    input_audio=2,
    output_total=9,
    output_reasoning=4,
    output_audio=1,
)
_RESPONSES_DETAILS = {
    **wire.RESPONSES_USAGE,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 3},
}


def with_openai_usage(usage: dict[str, Any], where: str = "") -> Said:
    """Return an answer with this usage, in a stream at its end or in an object of the vendor's own."""
    *start, finish, _, done = OPENAI_TEXT.frames
    if where:
        frames = [*start, {**finish, where: {"id": "x", "usage": usage}}, done]
    else:
        frames = [*start, finish, wire.openai_chunk(usage=usage), done]
    return Said({**OPENAI_TEXT.whole, "usage": usage}, frames)


COUNTED: dict[str, tuple[Said, Usage]] = {
    "openai": (with_openai_usage(_OPENAI_DETAILS), _OPENAI_COUNTED),
    "openai_responses": (
        responses([TEXT]),
        Usage(input_total=20, cache_read=5, output_total=9, output_reasoning=4),
    ),
    "groq": (with_openai_usage({**_OPENAI_DETAILS, "total_time": 0.1}, "x_groq"), _OPENAI_COUNTED),
    "openrouter": (
        with_openai_usage({**_OPENAI_DETAILS, "cost": 1.5e-05, "is_byok": False}),
        Usage.FromString(
            _OPENAI_COUNTED.SerializeToString() + Usage(provider_cost="0.000015").SerializeToString()
        ),
    ),
    "huggingface": (
        with_openai_usage({"prompt_tokens": 20, "completion_tokens": 9, "cached_tokens": 5}),
        Usage(input_total=20, cache_read=5, output_total=9),
    ),
    "self_hosted": (with_openai_usage(_OPENAI_DETAILS), _OPENAI_COUNTED),
    # Its input leaves out what came from or went into a cache.
    "anthropic": (
        anthropic([TEXT]),
        Usage(input_total=20, cache_read=5, cache_write=5, cache_write_1h=2, output_total=9),
    ),
    # Its thoughts are outside of its candidates, its tools' results outside of its prompt.
    "gemini": (
        VENDORS["gemini"].text,
        Usage(
            input_total=23,
            cache_read=5,
            input_image=6,
            input_audio=2,
            output_total=13,
            output_reasoning=4,
        ),
    ),
    "bedrock": (
        CONVERSE_TEXT,
        Usage(input_total=20, cache_read=4, cache_write=6, cache_write_1h=2, output_total=9),
    ),
}


@asks(13, only=tuple(COUNTED))
async def test_all_that_was_used_is_counted(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    said, expected = COUNTED[ask.vendor.name]
    for outcome in await both(server, client, ask, said):
        assert outcome.usage == expected
        usage = outcome.usage
        assert usage.cache_read + usage.cache_write <= usage.input_total
        assert usage.output_reasoning <= usage.output_total


@asks(14, only=("anthropic", "gemini", "openrouter", "self_hosted"))
async def test_usage_that_comes_again_is_not_added(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    """It is cumulative, or repeated, or said in every chunk: the last word is the right one."""
    vendor = ask.vendor
    frames = list(vendor.text.frames)
    if vendor.name == "anthropic":
        at = vendor.text.begun
        frames.insert(at, {**frames[at], "delta": {}, "usage": {"output_tokens": 5}})
    if vendor.name == "openrouter":
        frames.insert(-1, frames[-2])
    told = [
        frame for frame in frames if isinstance(frame, dict) and (frame.get("usage") or "usage" in str(frame))
    ]
    assert len(told) > 1
    server.script = vendor.script(vendor.encode(*frames))
    usage = (await streamed(client, ask)).usage
    assert (usage.input_total, usage.output_total) == vendor.usage


HIDDEN = {
    "usage",
    "x_groq",
    "usageMetadata",
    "prompt_eval_count",
    "eval_count",
    "inputTextTokenCount",
    "tokenCount",
}


def without_usage(value: Any) -> Any:
    """Return a document without what it says of tokens."""
    if isinstance(value, dict):
        return {name: without_usage(inner) for name, inner in value.items() if name not in HIDDEN}
    return [without_usage(each) for each in value] if isinstance(value, list) else value


@asks(15)
async def test_usage_that_is_not_told_is_estimated(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    text = ask.vendor.text
    frames = [without_usage(frame) for frame in text.frames]
    if ask.vendor.name == "bedrock":
        frames = [(name, without_usage(payload)) for name, payload in text.frames if name != "metadata"]
    if ask.vendor.name == "titan":
        chunk = {"outputText": TEXT, "completionReason": "FINISH"}
        frames = [wire_bedrock.titan_chunk(chunk)]
    outcomes = await both(server, client, ask, Said(without_usage(text.whole), frames))
    for outcome in outcomes:
        assert outcome.usage.estimated
        assert outcome.usage.input_total > 0
        assert outcome.usage.output_total > 0
        assert outcome.text == TEXT
    whole, stream = (outcome.usage.output_total for outcome in outcomes)
    assert whole == stream, "what the model wrote is counted, not the body it came in"


@asks(15, only=("anthropic",))
async def test_a_usage_of_the_start_alone_is_estimated(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    text = ask.vendor.text
    first, *rest = text.frames
    assert first["message"]["usage"]["output_tokens"] == 1
    server.script = ask.vendor.script(ask.vendor.encode(first, *map(without_usage, rest)))
    usage = (await streamed(client, ask)).usage
    assert usage.estimated
    assert usage.output_total > 1


def with_counts(value: Any, count: Any) -> Any:
    """Return a document whose every count of tokens is this one."""
    if isinstance(value, dict):
        return {
            name: count
            if isinstance(inner, int) and ("oken" in name or "count" in name)
            else with_counts(inner, count)
            for name, inner in value.items()
        }
    return [with_counts(each, count) for each in value] if isinstance(value, list) else value


@asks(15)
async def test_counts_that_are_none_are_estimated(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    """A negative or absurd count never makes an answer free, or dearer, or an error: it is not believed."""
    text = ask.vendor.text
    for count in (-5, 2**40):
        frames = [
            (frame[0], with_counts(frame[1], count))
            if isinstance(frame, tuple)
            else with_counts(frame, count)
            for frame in text.frames
        ]
        if ask.vendor.name == "titan":
            chunk = {"outputText": TEXT, "completionReason": "FINISH", "totalOutputTextTokenCount": count}
            frames = [wire_bedrock.titan_chunk({**chunk, "inputTextTokenCount": count})]
        for outcome in await both(server, client, ask, Said(with_counts(text.whole, count), frames)):
            assert outcome.text == TEXT
            assert outcome.usage.estimated
            assert 0 < outcome.usage.input_total < 100
            assert 0 < outcome.usage.output_total < 200


@asks(15, only=(*SHAPED, "openai_responses", "anthropic"))
async def test_usage_without_counts_is_no_usage(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    """Some back ends send the object with nulls in it: that is not an answer for nothing."""
    text = ask.vendor.text
    frames = [with_counts(frame, None) for frame in text.frames]
    for outcome in await both(server, client, ask, Said(with_counts(text.whole, None), frames)):
        assert outcome.usage.estimated
        assert outcome.usage.input_total > 0
        assert outcome.usage.output_total > 3


def openai_finish(word: str) -> Said:
    choice = {**OPENAI_TEXT.whole["choices"][0], "finish_reason": word}
    *start, finish, last, done = OPENAI_TEXT.frames
    finish = {**finish, "choices": [{**finish["choices"][0], "finish_reason": word}]}
    return Said({**OPENAI_TEXT.whole, "choices": [choice]}, [*start, finish, last, done])


def responses_finish(word: str) -> Said:
    said = responses([TEXT])
    if word == "completed":
        return said
    details = {"status": "incomplete", "incomplete_details": {"reason": word}}
    ended = {**said.whole, **details}
    last = {**said.frames[-1], "type": "response.incomplete", "response": ended}
    return Said(ended, [*said.frames[:-1], last])


def anthropic_finish(word: str) -> Said:
    said = anthropic([TEXT])
    end = {**said.frames[-2], "delta": {"stop_reason": word, "stop_sequence": None}}
    return Said({**said.whole, "stop_reason": word}, [*said.frames[:-2], end, said.frames[-1]])


def gemini_finish(word: str) -> Said:
    last = gemini_wire.chunk({"text": ""}, finish=word, usageMetadata=gemini_wire.USAGE)
    said = gemini_wire.chunk({"text": TEXT}, finish=word, usageMetadata=gemini_wire.USAGE)
    return Said(said, [*gemini_wire.CHUNKS[:4], last])


def converse_finish(word: str) -> Said:
    events = [*wire_bedrock.PLAIN[:4], wire_bedrock.stop(word), wire_bedrock.METADATA]
    return Said({**CONVERSE_TEXT.whole, "stopReason": word}, events)


def titan_finish(word: str) -> Said:
    result = {"tokenCount": 8, "outputText": TEXT, "completionReason": word}
    chunk = {"outputText": TEXT, "completionReason": word, "totalOutputTextTokenCount": 8}
    chunk["inputTextTokenCount"] = 5
    return Said({"inputTextTokenCount": 5, "results": [result]}, [wire_bedrock.titan_chunk(chunk)])


def ollama_finish(word: str) -> Said:
    done = {**ollama_wire.DONE, "done_reason": word}
    return Said(ollama_wire.line(done, TEXT), [*ollama_wire.LINES[:4], ollama_wire.line(done)])


_SHAPED = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_ANTHROPIC = {
    "end_turn": "stop",
    "max_tokens": "length",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_exceeded",
}
_CONVERSE = {
    "end_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "stop_sequence": "stop",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "malformed_model_output": "malformed",
    "malformed_tool_use": "malformed",
    "model_context_window_exceeded": "context_exceeded",
}
_TITAN = {
    "FINISH": "stop",
    "LENGTH": "length",
    "CONTENT_FILTERED": "content_filter",
    "STOP_CRITERIA_MET": "stop",
}
FINISHES: dict[str, tuple[Any, dict[str, str]]] = {
    **dict.fromkeys(SHAPED, (openai_finish, _SHAPED)),
    "openai_responses": (
        responses_finish,
        {"completed": "stop", "max_output_tokens": "length", "content_filter": "content_filter"},
    ),
    "anthropic": (anthropic_finish, _ANTHROPIC),
    "gemini": (
        gemini_finish,
        {word: reason for reason, words in GEMINI_FINISHES.items() for word in words if reason != "unknown"},
    ),
    "bedrock": (converse_finish, _CONVERSE),
    "titan": (titan_finish, _TITAN),
    "ollama": (ollama_finish, {"stop": "stop", "length": "length"}),
}


@asks(16)
async def test_how_an_answer_ended(server: FaultServer, client: ProviderService, ask: Ask) -> None:
    """Every word has its meaning and is kept; a word that nobody knows is never a stop."""
    build, words = FINISHES[ask.vendor.name]
    for word, reason in {**words, "invented_tomorrow": "unknown"}.items():
        for outcome in await both(server, client, ask, build(word)):
            assert outcome.finish.reason == reason, word
            assert outcome.finish.raw == word
            assert outcome.text == TEXT


async def test_every_word_that_the_clients_know_is_tested() -> None:
    words = get_args(get_args(Choice.model_fields["finish_reason"].annotation)[0])
    assert set(words) == _SHAPED.keys()
    assert set(get_args(StopReason)) <= _ANTHROPIC.keys()
    model = Session().get_service_model("bedrock-runtime")
    assert set(model.shape_for("StopReason").enum) == _CONVERSE.keys()
    assert {word.value for word in types.FinishReason} <= set().union(*GEMINI_FINISHES.values())


@asks(17, only=("openrouter",))
async def test_a_finish_that_comes_twice_is_one(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    said = ask.vendor.text
    finishes = [
        frame for frame in said.frames if isinstance(frame, dict) and frame["choices"][0]["finish_reason"]
    ]
    assert len(finishes) == 2
    server.script = ask.vendor.script(ask.vendor.frames())
    messages = await read(client, ask.attempt())
    [end] = [message.end for message in messages if message.HasField("end")]
    assert end.finish.reason == "stop"
    assert end.usage.provider_cost == "0.000015"


CUT = '{"x": '


def wrong_call(name: str) -> Said:
    """Return a call of a tool that nobody offered, with arguments that are no JSON."""
    function = {"name": "nobody_offered", "arguments": CUT}
    if name == "openai_responses":
        item = {"id": "fc_1", "type": "function_call", "call_id": "c1", "status": "completed", **function}
        head = {**item, "arguments": "", "status": "in_progress"}
        ended = wire.openai_response(output=[item])
        events = [
            wire.RESPONSES_EVENTS[0],
            {"type": "response.output_item.added", "output_index": 0, "item": head},
            {
                "type": "response.function_call_arguments.delta",
                "item_id": "fc_1",
                "output_index": 0,
                "delta": CUT,
            },
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": ended},
        ]
        return Said(ended, events)
    if name == "anthropic":
        block = {"type": "tool_use", "id": "toolu_1", "name": "nobody_offered", "input": {}}
        start = {"type": "content_block_start", "index": 0, "content_block": block}
        delta = {"type": "input_json_delta", "partial_json": CUT}
        events = [
            wire.ANTHROPIC_EVENTS[0],
            start,
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            *wire.ANTHROPIC_EVENTS[-2:],
        ]
        return Said({}, events)
    if name == "bedrock":
        return Said(
            {},
            [
                wire_bedrock.START,
                wire_bedrock.tool_start(0, "nobody_offered", "t1"),
                wire_bedrock.delta(0, toolUse={"input": CUT}),
                wire_bedrock.block_stop(0),
                wire_bedrock.stop("malformed_tool_use"),
                wire_bedrock.METADATA,
            ],
        )
    call = {"id": "call_a", "type": "function", "function": function}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "tool_calls": [call]},
        "finish_reason": "tool_calls",
    }
    chunks = [
        wire.openai_chunk({"tool_calls": [{"index": 0, **call}]}),
        wire.openai_chunk({}, "tool_calls"),
        b"[DONE]",
    ]
    return Said({**wire.OPENAI_ANSWER, "choices": [choice]}, chunks)


@asks(36, only=(*SHAPED, "openai_responses", "anthropic", "bedrock"))
async def test_a_call_that_is_none_is_passed_on(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    said = wrong_call(ask.vendor.name)
    server.script = ask.vendor.script(ask.vendor.frames(said))
    outcome = await streamed(client, ask)
    [call] = outcome.calls
    assert (call.name, call.arguments) == ("nobody_offered", CUT)
    assert outcome.finish.reason == ("malformed" if ask.vendor.name == "bedrock" else "tool_calls")
    if said.whole:
        server.script = answer(said.whole)
        [call] = (await whole(client, ask)).calls
        assert (call.name, call.arguments) == ("nobody_offered", CUT)


@pytest.mark.parametrize("ask", [Ask(VENDORS["gemini"], raw=False)], ids=["gemini"])
@pytest.mark.matrix(row=36, adapter="gemini")
async def test_gemini_says_itself_that_a_call_is_none(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    for word in ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL"):
        for outcome in await both(server, client, ask, gemini_finish(word)):
            assert (outcome.finish.reason, outcome.finish.raw) == ("malformed", word)
    said = gemini_wire.chunk(gemini_wire.call("nobody_offered", {"x": 1}), finish="STOP")
    [unoffered, _] = [
        call for each in await both(server, client, ask, Said(said, [said])) for call in each.calls
    ]
    assert unoffered.name == "nobody_offered"


@pytest.mark.parametrize("ask", [Ask(VENDORS["ollama"], raw=False)], ids=["ollama"])
@pytest.mark.matrix(row=36, adapter="ollama")
async def test_ollama_may_send_arguments_that_are_no_object(
    server: FaultServer, client: ProviderService, ask: Ask
) -> None:
    said = ollama_wire.line(
        ollama_wire.DONE, tool_calls=[{"function": {"name": "nobody_offered", "arguments": "x"}}]
    )
    server.script = answer(said)
    [part] = (await chat(client, ask.attempt())).message.parts
    assert part.tool_call.name == "nobody_offered"
    assert json.loads(part.tool_call.arguments_json) == "x"
