"""Upstreams that break at a given place, and others that go on, told what to do by the caller's message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.support.fault_server import Disconnect, Head, Pause, Recorded, Send, Stall, Step, answer, sse
from tests.support.wire import OPENAI_USAGE, openai_chunk

PIECES = ("Grüße, ", "schöne ", "Welt 🌍", " und", "\n\n", "gute Nacht.")
TEXT = "".join(PIECES)


@dataclass(frozen=True)
class Case:
    """What the first upstream does. Travels as the text of the user's message."""

    fault: str
    """cut, stall, error, malformed, half (a cut inside a frame) or silent_end (no finish)."""
    position: int
    """Frames before it."""
    second: str = "good"
    """The other upstream: good, different, rejects or breaks_once."""
    shape: str = "text"
    """What the first upstream writes: text, thought or tool."""

    def body(self, model: str, **more: Any) -> dict[str, Any]:
        """Return the request of this case, of either format."""
        message = {"role": "user", "content": json.dumps(asdict(self))}
        if model.startswith("responses+"):
            return {"model": model, "stream": True, "max_output_tokens": 500, "input": [message], **more}
        return {"model": model, "stream": True, "max_tokens": 500, "messages": [message], **more}


def case_of(document: dict[str, Any]) -> Case:
    """Read the case out of a request."""
    messages = document.get("messages") or document["input"]
    content = next(m["content"] for m in messages if m["role"] == "user")
    text = content if isinstance(content, str) else content[0]["text"]
    return Case(**json.loads(text))


def prefill_of(document: dict[str, Any]) -> str:
    """Return the text that the model is to go on from."""
    last = document["messages"][-1]
    if last["role"] != "assistant":
        return ""
    content = last["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def openai_frames(pieces: Sequence[str], shape: str = "text") -> list[bytes]:
    """Return the frames of a stream, each one event; the last ones end it."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    if shape == "thought":
        deltas.append({"reasoning_content": "hm"})
    deltas += [{"content": piece} for piece in pieces]
    finish = "stop"
    if shape == "tool":
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
        deltas += [{"tool_calls": [call]}, {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}]
        finish = "tool_calls"
    chunks = [openai_chunk(delta) for delta in deltas]
    chunks += [openai_chunk({}, finish), openai_chunk(usage=OPENAI_USAGE)]
    return [*(sse(chunk) for chunk in chunks), b"data: [DONE]\n\n"]


def anthropic_frames(pieces: Sequence[str], shape: str = "text") -> list[bytes]:
    """Return the same for the other format."""
    usage = {"input_tokens": 20, "output_tokens": 1}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}}
    ]
    index = 0

    def block(start: dict[str, Any], *deltas: dict[str, Any]) -> None:
        nonlocal index
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events.extend({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        events.append({"type": "content_block_stop", "index": index})
        index += 1

    if shape == "thought":
        thought = {"type": "thinking_delta", "thinking": "hm"}
        block({"type": "thinking", "thinking": "", "signature": ""}, thought)
    block({"type": "text", "text": ""}, *({"type": "text_delta", "text": piece} for piece in pieces))
    if shape == "tool":
        arguments = {"type": "input_json_delta", "partial_json": "{}"}
        block({"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}, arguments)
    stop = {"stop_reason": "tool_use" if shape == "tool" else "end_turn", "stop_sequence": None}
    events.append({"type": "message_delta", "delta": stop, "usage": {"output_tokens": 9}})
    events.append({"type": "message_stop"})
    return [sse(event, event=True) for event in events]


def responses_frames(pieces: Sequence[str], shape: str = "text") -> list[bytes]:
    """Return the same for responses."""
    whole: dict[str, Any] = {
        "id": "resp_first",
        "object": "response",
        "created_at": 1700000000,
        "model": "gpt-x-2026",
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {"kept": "yes"},
    }
    events: list[dict[str, Any]] = [
        {"type": f"response.{kind}", "response": whole} for kind in ("created", "in_progress")
    ]
    output: list[dict[str, Any]] = []

    def item(begun: dict[str, Any], done: dict[str, Any], *between: dict[str, Any]) -> None:
        index = {"output_index": len(output)}
        events.append({"type": "response.output_item.added", **index, "item": begun})
        events.extend({**event, **index, "item_id": begun["id"]} for event in between)
        events.append({"type": "response.output_item.done", **index, "item": done})
        output.append(done)

    if shape == "thought":
        part = {"type": "summary_text", "text": "hm"}
        prefix, place = "response.reasoning_summary", {"summary_index": 0}
        thought = {"id": "rs_1", "type": "reasoning", "summary": []}
        item(
            thought,
            {**thought, "summary": [part]},
            {"type": f"{prefix}_part.added", **place, "part": {**part, "text": ""}},
            {"type": f"{prefix}_text.delta", **place, "delta": "hm"},
            {"type": f"{prefix}_text.done", **place, "text": "hm"},
            {"type": f"{prefix}_part.done", **place, "part": part},
        )
    content = {"type": "output_text", "text": "".join(pieces), "annotations": [], "logprobs": []}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }
    text, place = "response.output_text", {"content_index": 0}
    item(
        message,
        {**message, "status": "completed", "content": [content]},
        {"type": "response.content_part.added", **place, "part": {**content, "text": ""}},
        *({"type": f"{text}.delta", **place, "delta": piece, "logprobs": []} for piece in pieces),
        {"type": f"{text}.done", **place, "text": content["text"], "logprobs": []},
        {"type": "response.content_part.done", **place, "part": content},
    )
    if shape == "tool":
        call = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": ""}
        arguments = "response.function_call_arguments"
        item(
            call,
            {**call, "arguments": "{}"},
            {"type": f"{arguments}.delta", "delta": "{}"},
            {"type": f"{arguments}.done", "arguments": "{}", "name": "f"},
        )
    usage = {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 9,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 29,
    }
    done = {**whole, "status": "completed", "output": output, "usage": usage}
    events.append({"type": "response.completed", "response": done})
    return [sse({**event, "sequence_number": n}, event=True) for n, event in enumerate(events)]


FRAMES = {"openai": openai_frames, "anthropic": anthropic_frames, "responses": responses_frames}
# Frames at the end that say that the answer is complete.
TAIL = {"openai": 3, "anthropic": 2, "responses": 1}
ERRORS: dict[str, bytes] = {
    "openai": sse(
        {"error": {"message": "overloaded", "type": "server_error", "code": "server_is_overloaded"}}
    ),
    "anthropic": sse(
        {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}, event=True
    ),
    "responses": sse(
        {"type": "error", "code": "server_is_overloaded", "message": "overloaded", "param": None}, event=True
    ),
}


def broken(form: str, case: Case) -> list[Step]:
    """Return the script of an upstream that breaks as the case says."""
    frames = FRAMES[form](PIECES, case.shape)
    before, after = frames[: case.position], frames[case.position]
    head = [Head(content_type="text/event-stream"), *map(Send, before), Pause(0.03)]
    match case.fault:
        case "cut":
            return [*head, Disconnect()]
        case "stall":
            return [*head, Stall()]
        case "error":
            return [*head, Send(ERRORS[form], fault="error")]
        case "malformed":
            wrong = Send(b"data: {nonsense\n\n", fault="malformed")
            return [*head, wrong, *map(Send, frames[case.position :])]
        case "half":
            return [*head, Send(after[: len(after) // 2]), Disconnect()]
    return list(head)


def whole(form: str, pieces: Sequence[str]) -> list[Step]:
    """Return the script of a good stream in several network reads."""
    return [Head(content_type="text/event-stream"), *map(Send, FRAMES[form](pieces))]


def respond(request: Recorded) -> Sequence[Step]:
    """Answer by the path: `/bad-<format>` breaks, `/good-<format>` and `/plain-<format>` go on."""
    role, _, rest = request.path.lstrip("/").partition("-")
    form = rest.partition("/")[0]
    document = request.json()
    case = case_of(document)
    if role == "bad":
        return broken(form, case)
    prefill = prefill_of(document)
    if case.second == "rejects" and prefill:
        return answer({"error": {"type": "invalid_request_error", "message": "no prefill here"}}, 400)
    if case.second == "different":
        return whole(form, ["Something ", "else."])
    assert TEXT.startswith(prefill), prefill
    rest_of_text = TEXT[len(prefill) :]
    # Other pieces than the first time: 3 characters each.
    pieces = [rest_of_text[start : start + 3] for start in range(0, len(rest_of_text), 3)]
    if case.second == "breaks_once":
        return [*whole(form, pieces)[: 2 + len(pieces) // 2], Disconnect()]
    return whole(form, pieces)
