"""Answers and frames as Gemini really sends them."""

from __future__ import annotations

from typing import Any

from tests.support.fault_server import sse

TEXT = "Grüße, Welt 🌍"
SIGNATURE = "CpcBAVSoXO4+reallyOpaque/w=="
# The thoughts are not part of candidatesTokenCount; the cached tokens are part of promptTokenCount.
USAGE = {
    "promptTokenCount": 20,
    "candidatesTokenCount": 9,
    "thoughtsTokenCount": 4,
    "toolUsePromptTokenCount": 3,
    "cachedContentTokenCount": 5,
    "totalTokenCount": 36,
    "promptTokensDetails": [
        {"modality": "TEXT", "tokenCount": 12},
        {"modality": "IMAGE", "tokenCount": 6},
        {"modality": "AUDIO", "tokenCount": 2},
    ],
}


def chunk(*parts: dict[str, Any], finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return one chunk, or a whole answer."""
    candidate: dict[str, Any] = {"index": 0}
    if parts:
        candidate["content"] = {"role": "model", "parts": list(parts)}
    if finish is not None:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": {"promptTokenCount": 15, "totalTokenCount": 15},
        "modelVersion": "gemini-x-2026",
        "responseId": "resp-1",
        **fields,
    }


def call(name: str, args: dict[str, Any] | None = None, **part: Any) -> dict[str, Any]:
    """Return a call, without an id as nearly always."""
    inner: dict[str, Any] = {"name": name}
    if args is not None:
        inner["args"] = args
    return {"functionCall": inner, **part}


ANSWER = chunk(
    {"text": "Let me see.", "thought": True},
    {"text": TEXT},
    finish="STOP",
    usageMetadata=USAGE,
)
CHUNKS = [
    chunk({"text": "Let me ", "thought": True}),
    chunk({"text": "see.", "thought": True}),
    chunk({"text": "Grüße, "}, usageMetadata={"promptTokenCount": 15, "candidatesTokenCount": 2}),
    chunk({"text": "Welt 🌍"}),
    # The prompt's count changes between chunks; the last one is right.
    chunk({"text": ""}, finish="STOP", usageMetadata=USAGE),
]
TOOL_PARTS = [
    {"text": "I look. "},
    call("look", {"at": 1.0}, thoughtSignature=SIGNATURE),
    call("look", {"at": 2}),
    call("wait"),
]
TOOL_ANSWER = chunk(*TOOL_PARTS, finish="STOP", usageMetadata=USAGE)
TOOL_CHUNKS = [
    chunk(*TOOL_PARTS[:2]),
    chunk(*TOOL_PARTS[2:]),
    chunk(finish="STOP", usageMetadata=USAGE),
]
BLOCKED = {
    "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
    "usageMetadata": {"promptTokenCount": 8, "totalTokenCount": 8},
    "modelVersion": "gemini-x-2026",
}


def error(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    """Return an error body."""
    body: dict[str, Any] = {"code": code, "message": message, "status": status}
    return {"error": {**body, "details": list(details)} if details else body}


def retry_info(delay: str) -> dict[str, Any]:
    """Return the detail that says how long to wait."""
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def stream(documents: list[dict[str, Any]] | None = None) -> bytes:
    """Return a good stream: it has no end mark."""
    return sse(*(documents or CHUNKS))
