"""Frames as real vendors send them."""

from __future__ import annotations

from typing import Any

from tests.support.fault_server import sse

OPENAI_USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 9,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 4, "audio_tokens": 0},
}


def openai_chunk(
    delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any
) -> dict[str, Any]:
    """Return one chunk."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-x-2026",
        "choices": choices,
        **fields,
    }


OPENAI_TEXT = [
    openai_chunk({"role": "assistant", "content": ""}),
    openai_chunk({"content": "Grüße, "}),
    openai_chunk({"content": "Welt 🌍"}),
    openai_chunk({}, "stop"),
    openai_chunk(usage=OPENAI_USAGE),
]

OPENAI_TOOLS = [
    openai_chunk({"role": "assistant", "content": None}),
    openai_chunk(
        {
            "tool_calls": [
                {"index": 0, "id": "call_a", "type": "function", "function": {"name": "f", "arguments": ""}}
            ]
        }
    ),
    openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x": '}}]}),
    openai_chunk(
        {
            "tool_calls": [
                {"index": 1, "id": "call_b", "type": "function", "function": {"name": "g", "arguments": ""}}
            ]
        }
    ),
    openai_chunk({"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]}),
    openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": "1.0}"}}]}),
    openai_chunk({}, "tool_calls"),
    openai_chunk(usage=OPENAI_USAGE),
]

OPENAI_ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "gpt-x-2026",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Grüße, Welt 🌍", "refusal": None},
            "finish_reason": "stop",
        }
    ],
    "usage": OPENAI_USAGE,
    "vendor_extra": {"kept": [1, 2.50]},
}

ANTHROPIC_ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x-2026",
    "content": [
        {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"},
        {"type": "text", "text": "Grüße, Welt 🌍"},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1.0}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 5,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2},
        "output_tokens": 9,
    },
}

ANTHROPIC_EVENTS: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-x-2026",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": 10,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 5,
                "output_tokens": 1,
            },
        },
    },
    {"type": "ping"},
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    },
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "thinking_delta", "thinking": "Let me see."},
    },
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Grüße, "}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Welt 🌍"}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 2,
        "delta": {"type": "input_json_delta", "partial_json": '{"x":'},
    },
    {
        "type": "content_block_delta",
        "index": 2,
        "delta": {"type": "input_json_delta", "partial_json": "1.0}"},
    },
    {"type": "content_block_stop", "index": 2},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 9},
    },
    {"type": "message_stop"},
]

RESPONSES_USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 29,
}
_THOUGHT = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "Z0FBQUFB"}
_CALL = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "call_id": "call_a",
    "name": "f",
    "arguments": '{"x": 1.0}',
}


def _said(text: str, status: str = "completed") -> dict[str, Any]:
    piece = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    content = [piece] if text else []
    return {"id": "msg_1", "type": "message", "status": status, "role": "assistant", "content": content}


def openai_response(status: str = "completed", **fields: Any) -> dict[str, Any]:
    """Return a response; without output and usage unless it is complete."""
    complete = status == "completed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1700000000,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": "gpt-x-2026",
        "output": [_THOUGHT, _said("Grüße, Welt 🌍"), _CALL] if complete else [],
        "parallel_tool_calls": True,
        "store": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": RESPONSES_USAGE if complete else None,
        "vendor_extra": {"kept": [1, 2.50]},
        **fields,
    }


def _responses_events() -> list[dict[str, Any]]:
    text = {"item_id": "msg_1", "output_index": 1, "content_index": 0}
    call = {"item_id": "fc_1", "output_index": 2}
    piece = _said("Grüße, Welt 🌍")["content"][0]
    begun = {**_CALL, "status": "in_progress", "arguments": ""}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": openai_response("in_progress")},
        {"type": "response.in_progress", "response": openai_response("in_progress")},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**_THOUGHT, "encrypted_content": ""},
        },
        {"type": "response.output_item.done", "output_index": 0, "item": _THOUGHT},
        {"type": "response.output_item.added", "output_index": 1, "item": _said("", "in_progress")},
        {"type": "response.content_part.added", **text, "part": {**piece, "text": ""}},
        {"type": "response.output_text.delta", **text, "delta": "Grüße, ", "logprobs": []},
        {"type": "response.output_text.delta", **text, "delta": "Welt 🌍", "logprobs": []},
        {"type": "response.output_text.done", **text, "text": "Grüße, Welt 🌍", "logprobs": []},
        {"type": "response.content_part.done", **text, "part": piece},
        {"type": "response.output_item.done", "output_index": 1, "item": _said("Grüße, Welt 🌍")},
        {"type": "response.output_item.added", "output_index": 2, "item": begun},
        {"type": "response.function_call_arguments.delta", **call, "delta": '{"x": '},
        {"type": "response.function_call_arguments.delta", **call, "delta": "1.0}"},
        {"type": "response.function_call_arguments.done", **call, "name": "f", "arguments": '{"x": 1.0}'},
        {"type": "response.output_item.done", "output_index": 2, "item": _CALL},
        {"type": "response.completed", "response": openai_response()},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


RESPONSES_EVENTS = _responses_events()


def openai_stream(documents: list[dict[str, Any]] | None = None) -> bytes:
    """Return a good stream."""
    return sse(*(documents or OPENAI_TEXT), done=True)


def anthropic_stream(documents: list[dict[str, Any]] | None = None) -> bytes:
    """Return a good stream."""
    return sse(*(documents or ANTHROPIC_EVENTS), event=True)


def responses_stream(documents: list[dict[str, Any]] | None = None) -> bytes:
    """Return a good stream."""
    return sse(*(documents or RESPONSES_EVENTS), event=True)
