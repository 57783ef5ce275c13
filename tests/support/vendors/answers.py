"""What each vendor answers, whole and as a stream: a text, one tool call, several calls at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.support import gemini_wire, ollama_wire, wire, wire_bedrock

TEXT = "Grüße, Welt 🌍"
ARGUMENTS = '{"x": 1.0}'
DONE = b"[DONE]"
Json = dict[str, Any]


@dataclass(frozen=True)
class Called:
    """A tool call as a caller gets it."""

    name: str
    arguments: str
    id: str = ""
    """Empty where the vendor gives none, so that ours is another one each time."""


@dataclass(frozen=True)
class Said:
    """One answer, both ways."""

    whole: Json
    frames: Sequence[Any]
    """Documents of the stream, in order; of event streams a name and a payload each."""
    begun: int = 0
    """Frames after which all of the text has come and its finish has not."""
    calls: Sequence[Called] = ()


def openai(message: Json, chunks: Sequence[Json], finish: str, calls: Sequence[Called] = ()) -> Said:
    """Return an answer of chat completions."""
    choice = {"index": 0, "message": {"role": "assistant", "refusal": None, **message}}
    whole = {**wire.OPENAI_ANSWER, "choices": [{**choice, "finish_reason": finish}]}
    first = wire.openai_chunk({"role": "assistant", "content": ""})
    last = wire.openai_chunk(usage=wire.OPENAI_USAGE)
    frames = [first, *map(wire.openai_chunk, chunks), wire.openai_chunk({}, finish), last, DONE]
    return Said(whole, frames, 1 + len(chunks), calls)


def _openai_call(call: Called, index: int | None = None, arguments: str | None = None) -> Json:
    function = {"name": call.name, "arguments": call.arguments if arguments is None else arguments}
    numbered = {} if index is None else {"index": index}
    return {**numbered, "id": call.id, "type": "function", "function": function}


def _openai_piece(index: int, arguments: str) -> Json:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}


ONE = [Called("f", ARGUMENTS, "call_a")]
TWO = [Called("f", ARGUMENTS, "call_a"), Called("g", "{}", "call_b")]

OPENAI_TEXT = openai({"content": TEXT}, [{"content": "Grüße, "}, {"content": "Welt 🌍"}], "stop")
OPENAI_CALL = openai(
    {"content": None, "tool_calls": [_openai_call(ONE[0])]},
    [
        {"tool_calls": [_openai_call(ONE[0], 0, "")]},
        _openai_piece(0, '{"x": '),
        _openai_piece(0, "1.0}"),
    ],
    "tool_calls",
    ONE,
)
OPENAI_CALLS = openai(
    {"content": None, "tool_calls": [_openai_call(call) for call in TWO]},
    [
        {"tool_calls": [_openai_call(TWO[0], 0, "")]},
        _openai_piece(0, '{"x": '),
        {"tool_calls": [_openai_call(TWO[1], 1, "")]},
        _openai_piece(1, "{}"),
        _openai_piece(0, "1.0}"),
    ],
    "tool_calls",
    TWO,
)


def groq(said: Said) -> Said:
    """Return the answer as Groq words it: usage in an object of its own, a channel in each delta."""
    first, *middle, finish, _, done = said.frames
    usage = {**wire.OPENAI_USAGE, "queue_time": 0.01, "total_time": 0.1}
    frames = [
        {**first, "x_groq": {"id": "req_1"}},
        *({**chunk, "service_tier": None} for chunk in middle),
        {**finish, "x_groq": {"id": "req_1", "usage": usage}},
        done,
    ]
    return Said({**said.whole, "x_groq": {"id": "req_1"}}, frames, said.begun, said.calls)


def openrouter(said: Said) -> Said:
    """Return the answer as OpenRouter words it: its finish comes twice, the second time with the cost."""
    *start, finish, _, done = said.frames
    usage = {**wire.OPENAI_USAGE, "cost": 1.5e-05, "is_byok": False}
    choices = [{**choice, "native_finish_reason": "STOP"} for choice in finish["choices"]]
    finish = {**finish, "choices": choices, "provider": "Someone"}
    frames = [*start, finish, {**finish, "usage": usage}, done]
    whole = {**said.whole, "provider": "Someone", "usage": usage}
    return Said(whole, frames, said.begun, said.calls)


def huggingface(said: Said) -> Said:
    """Return the answer as one of Hugging Face's back ends words it."""
    usage = {**wire.OPENAI_USAGE, "prompt_tokens_details": None, "cached_tokens": 5}
    *start, last, done = said.frames
    whole = {**said.whole, "usage": usage, "kv_transfer_params": None, "prompt_logprobs": None}
    return Said(whole, [*start, {**last, "usage": usage}, done], said.begun, said.calls)


def vllm(said: Said) -> Said:
    """Return the answer as vLLM words it: with usage so far in every chunk, when told to."""
    *start, last, done = said.frames
    counting = [
        {**chunk, "usage": {"prompt_tokens": 20, "completion_tokens": number, "total_tokens": 20 + number}}
        for number, chunk in enumerate(start)
    ]
    return Said({**said.whole, "prompt_logprobs": None}, [*counting, last, done], said.begun, said.calls)


def responses(items: Sequence[str | Called]) -> Said:
    """Return an answer of responses."""
    output: list[Json] = []
    events: list[Json] = [{"type": "response.created", "response": wire.openai_response("in_progress")}]
    for index, item in enumerate(items):
        more, done = _said(index, item) if isinstance(item, str) else _called(index, item)
        output.append(done)
        events += more
    begun = len(events)
    whole = wire.openai_response(output=output)
    events.append({"type": "response.completed", "response": whole})
    frames = [{**event, "sequence_number": number} for number, event in enumerate(events)]
    calls = [item for item in items if isinstance(item, Called)]
    return Said(whole, frames, begun, calls)


def _said(index: int, text: str) -> tuple[list[Json], Json]:
    head = {"id": "msg_1", "type": "message", "role": "assistant"}
    at = {"item_id": "msg_1", "output_index": index, "content_index": 0}
    piece = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    done = {**head, "status": "completed", "content": [piece]}
    begun = {**head, "status": "in_progress", "content": []}
    half = len(text) // 2
    events: list[Json] = [
        {"type": "response.output_item.added", "output_index": index, "item": begun},
        {"type": "response.content_part.added", **at, "part": {**piece, "text": ""}},
        {"type": "response.output_text.delta", **at, "delta": text[:half], "logprobs": []},
        {"type": "response.output_text.delta", **at, "delta": text[half:], "logprobs": []},
        {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **at, "part": piece},
        {"type": "response.output_item.done", "output_index": index, "item": done},
    ]
    return events, done


def _called(index: int, call: Called) -> tuple[list[Json], Json]:
    item = {"id": f"fc_{index}", "type": "function_call", "call_id": call.id, "name": call.name}
    at = {"item_id": item["id"], "output_index": index}
    done = {**item, "status": "completed", "arguments": call.arguments}
    begun = {**item, "status": "in_progress", "arguments": ""}
    half = len(call.arguments) // 2
    delta = "response.function_call_arguments.delta"
    events: list[Json] = [
        {"type": "response.output_item.added", "output_index": index, "item": begun},
        {"type": delta, **at, "delta": call.arguments[:half]},
        {"type": delta, **at, "delta": call.arguments[half:]},
        {
            "type": "response.function_call_arguments.done",
            **at,
            "name": call.name,
            "arguments": call.arguments,
        },
        {"type": "response.output_item.done", "output_index": index, "item": done},
    ]
    return events, done


def anthropic(items: Sequence[str | Called]) -> Said:
    """Return an answer of messages."""
    head = {k: v for k, v in wire.ANTHROPIC_ANSWER.items() if k not in {"content", "stop_reason"}}
    content: list[Json] = []
    events: list[Json] = [wire.ANTHROPIC_EVENTS[0], {"type": "ping"}]
    for index, item in enumerate(items):
        if isinstance(item, str):
            whole, kind, name = {"type": "text", "text": item}, "text_delta", "text"
            empty, text = {"type": "text", "text": ""}, item
        else:
            empty = {"type": "tool_use", "id": item.id, "name": item.name, "input": {}}
            whole, kind, name = (
                {**empty, "input": json.loads(item.arguments)},
                "input_json_delta",
                "partial_json",
            )
            text = item.arguments
        content.append(whole)
        half = len(text) // 2
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        for piece in (text[:half], text[half:]):
            delta = {"type": kind, name: piece}
            events.append({"type": "content_block_delta", "index": index, "delta": delta})
        events.append({"type": "content_block_stop", "index": index})
    calls = [item for item in items if isinstance(item, Called)]
    reason = "tool_use" if calls else "end_turn"
    begun = len(events)
    stop = {"stop_reason": reason, "stop_sequence": None}
    usage = {name: wire.ANTHROPIC_ANSWER["usage"][name] for name in ("output_tokens", "cache_creation")}
    events.append({"type": "message_delta", "delta": stop, "usage": usage})
    events.append({"type": "message_stop"})
    return Said({**head, "content": content, "stop_reason": reason}, events, begun, calls)


GEMINI_TEXT = Said(gemini_wire.ANSWER, gemini_wire.CHUNKS, 4)
GEMINI_CALL = Said(
    gemini_wire.chunk(gemini_wire.call("f", {"x": 1.0}), finish="STOP", usageMetadata=gemini_wire.USAGE),
    [
        gemini_wire.chunk(gemini_wire.call("f", {"x": 1.0})),
        gemini_wire.chunk(finish="STOP", usageMetadata=gemini_wire.USAGE),
    ],
    calls=[Called("f", '{"x":1.0}')],
)
_LOOKED = [Called("look", '{"at":1.0}'), Called("look", '{"at":2}'), Called("wait", "{}")]
GEMINI_CALLS = Said(gemini_wire.TOOL_ANSWER, gemini_wire.TOOL_CHUNKS, calls=_LOOKED)

OLLAMA_TEXT = Said(ollama_wire.ANSWER, ollama_wire.LINES, 4)
_OLLAMA_CALL = [ollama_wire.call("f", {"x": 1.0})]
OLLAMA_CALL = Said(
    ollama_wire.line(ollama_wire.DONE, tool_calls=_OLLAMA_CALL),
    [ollama_wire.line(tool_calls=_OLLAMA_CALL), ollama_wire.line(ollama_wire.DONE)],
    calls=[Called("f", '{"x":1.0}')],
)
OLLAMA_CALLS = Said(ollama_wire.TOOL_ANSWER, ollama_wire.TOOL_LINES, calls=_LOOKED)


def _converse(content: list[Json], reason: str) -> Json:
    message = {"role": "assistant", "content": content}
    return {**wire_bedrock.ANSWER, "output": {"message": message}, "stopReason": reason}


_USED = [Called("f", ARGUMENTS, "tooluse_1"), Called("g", "{}", "tooluse_2")]
CONVERSE_TEXT = Said(_converse([{"text": TEXT}], "end_turn"), wire_bedrock.PLAIN, 4)
CONVERSE_CALL = Said(
    _converse([{"toolUse": {"toolUseId": "tooluse_1", "name": "f", "input": {"x": 1.0}}}], "tool_use"),
    [
        wire_bedrock.START,
        wire_bedrock.tool_start(0, "f", "tooluse_1"),
        wire_bedrock.delta(0, toolUse={"input": '{"x":'}),
        wire_bedrock.delta(0, toolUse={"input": " 1.0}"}),
        wire_bedrock.block_stop(0),
        wire_bedrock.stop("tool_use"),
        wire_bedrock.METADATA,
    ],
    calls=_USED[:1],
)
CONVERSE_CALLS = Said(wire_bedrock.ANSWER, wire_bedrock.EVENTS, calls=_USED)


def _titan(text: str, reason: str | None, **more: Any) -> tuple[str, Json]:
    chunk = {"outputText": text, "index": 0, "totalOutputTextTokenCount": None, "inputTextTokenCount": None}
    return wire_bedrock.titan_chunk({**chunk, "completionReason": reason, **more})


TITAN_TEXT = Said(
    wire_bedrock.TITAN_ANSWER,
    [
        _titan("Grüße, ", None, inputTextTokenCount=5),
        _titan("Welt 🌍", None),
        _titan("", "FINISH", totalOutputTextTokenCount=8),
    ],
    2,
)
