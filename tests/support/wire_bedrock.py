"""Answers and events as Bedrock sends them."""

from __future__ import annotations

import base64
import json
from typing import Any

TEXT = "Grüße, Welt 🌍"
USAGE = {
    "inputTokens": 10,
    "outputTokens": 9,
    "totalTokens": 29,
    "cacheReadInputTokens": 4,
    "cacheWriteInputTokens": 6,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 2}, {"ttl": "5m", "inputTokens": 4}],
}
SIGNATURE = "c2lnbmF0dXJlLwo="
REDACTED = base64.b64encode(b"hidden").decode()

ANSWER: dict[str, Any] = {
    "metrics": {"latencyMs": 500},
    "output": {
        "message": {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "Let me see.", "signature": SIGNATURE}}},
                {"reasoningContent": {"redactedContent": REDACTED}},
                {"text": TEXT},
                {"toolUse": {"toolUseId": "tooluse_1", "name": "f", "input": {"x": 1.0}}},
                {"toolUse": {"toolUseId": "tooluse_2", "name": "g", "input": {}}},
            ],
        }
    },
    "stopReason": "tool_use",
    "usage": USAGE,
}

Events = list[tuple[str, dict[str, Any]]]


def delta(index: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Return one delta."""
    return "contentBlockDelta", {"contentBlockIndex": index, "delta": fields}


def block_stop(index: int) -> tuple[str, dict[str, Any]]:
    """Return the end of a block."""
    return "contentBlockStop", {"contentBlockIndex": index}


def tool_start(index: int, name: str, identifier: str) -> tuple[str, dict[str, Any]]:
    """Return the start of a call."""
    start = {"toolUse": {"toolUseId": identifier, "name": name}}
    return "contentBlockStart", {"contentBlockIndex": index, "start": start}


START: tuple[str, dict[str, Any]] = ("messageStart", {"role": "assistant"})
METADATA: tuple[str, dict[str, Any]] = ("metadata", {"usage": USAGE, "metrics": {"latencyMs": 500}})


def stop(reason: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Return the end of the message; usage follows it."""
    return "messageStop", {"stopReason": reason, **fields}


# The same answer as ANSWER. Text and thoughts have no contentBlockStart; the calls are interleaved.
EVENTS: Events = [
    START,
    delta(0, reasoningContent={"text": "Let me "}),
    delta(0, reasoningContent={"text": "see."}),
    delta(0, reasoningContent={"signature": SIGNATURE}),
    block_stop(0),
    delta(1, reasoningContent={"redactedContent": REDACTED}),
    block_stop(1),
    delta(2, text="Grüße, "),
    delta(2, text="Welt 🌍"),
    block_stop(2),
    tool_start(3, "f", "tooluse_1"),
    delta(3, toolUse={"input": '{"x":'}),
    tool_start(4, "g", "tooluse_2"),
    delta(4, toolUse={"input": ""}),
    delta(4, toolUse={"input": "{}"}),
    delta(3, toolUse={"input": " 1.0}"}),
    block_stop(3),
    block_stop(4),
    stop("tool_use"),
    METADATA,
]

PLAIN: Events = [
    START,
    delta(0, text="Grüße, "),
    delta(0, text="Welt 🌍"),
    block_stop(0),
    stop("end_turn"),
    METADATA,
]

TITAN_ANSWER = {
    "inputTextTokenCount": 5,
    "results": [{"tokenCount": 8, "outputText": TEXT, "completionReason": "FINISH"}],
}


def titan_chunk(document: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return one chunk of InvokeModelWithResponseStream: a document in base64."""
    return "chunk", {"bytes": base64.b64encode(json.dumps(document).encode()).decode()}


TITAN_EVENTS: Events = [
    titan_chunk(
        {
            "outputText": "Grüße, ",
            "index": 0,
            "totalOutputTextTokenCount": None,
            "completionReason": None,
            "inputTextTokenCount": 5,
        }
    ),
    titan_chunk(
        {
            "outputText": "Welt 🌍",
            "index": 0,
            "totalOutputTextTokenCount": 8,
            "completionReason": "FINISH",
            "inputTextTokenCount": None,
            "amazon-bedrock-invocationMetrics": {"inputTokenCount": 5, "outputTokenCount": 8},
        }
    ),
]
