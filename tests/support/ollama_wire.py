"""Answers and lines as Ollama's own API sends them."""

from __future__ import annotations

from typing import Any

import msgspec

TEXT = "Grüße, Welt 🌍"
DONE = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 4883583458,
    "load_duration": 1334875,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 342546000,
    "eval_count": 9,
    "eval_duration": 4535599000,
}


def line(done: dict[str, Any] | None = None, content: str = "", **message: Any) -> dict[str, Any]:
    """Return one line, or a whole answer."""
    return {
        "model": "llama-x",
        "created_at": "2026-01-01T00:00:00.000000Z",
        "message": {"role": "assistant", "content": content, **message},
        **(done or {"done": False}),
    }


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a call: its arguments are an object, and it has no id."""
    return {"function": {"name": name, "arguments": arguments}}


ANSWER = line(DONE, TEXT, thinking="Let me see.")
LINES = [
    line(thinking="Let me "),
    line(thinking="see."),
    line(content="Grüße, "),
    line(content="Welt 🌍"),
    line(DONE),
]
CALLS = [call("look", {"at": 1.0}), call("look", {"at": 2}), call("wait", {})]
TOOL_ANSWER = line(DONE, "I look. ", tool_calls=CALLS)
TOOL_LINES = [line(content="I look. ", tool_calls=CALLS[:1]), line(tool_calls=CALLS[1:]), line(DONE)]


def lines(*documents: Any) -> bytes:
    """Return documents one a line."""
    return b"".join(msgspec.json.encode(document) + b"\n" for document in documents)


def stream(documents: list[dict[str, Any]] | None = None) -> bytes:
    """Return a good stream."""
    return lines(*(documents or LINES))
