"""How a response ended, and its usage, both ways."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Finish, Usage

from services.formats.usage import reported

_INCOMPLETE = {"max_output_tokens": "length", "content_filter": "content_filter"}
_REASONS = {
    "length": "max_output_tokens",
    "context_exceeded": "max_output_tokens",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}
_COMPLETED = frozenset({"stop", "tool_calls"})
_FAILED = frozenset({"error", "malformed"})


class Incomplete(msgspec.Struct):
    """Why a response is not complete."""

    reason: str | None = None


def read_finish(status: str, incomplete: Incomplete | None, has_calls: bool) -> Finish:
    """Return the finish that a status means; a word nobody knows is `unknown`, never `stop`."""
    if status == "completed":
        return Finish(reason="tool_calls" if has_calls else "stop", raw=status)
    if status == "incomplete":
        word = (incomplete.reason if incomplete is not None else None) or status
        return Finish(reason=_INCOMPLETE.get(word, "unknown"), raw=word)
    reason = {"failed": "error", "cancelled": "cancelled"}.get(status, "unknown")
    return Finish(reason=reason, raw=status)


def write_finish(finish: Finish) -> dict[str, Any]:
    """Return `status`, `incomplete_details` and `error` of a response. Only a whole answer is `completed`."""
    if finish.reason in _COMPLETED:
        return {"status": "completed", "incomplete_details": None, "error": None}
    if finish.reason in _FAILED:
        message = f"the provider ended the answer: {finish.raw or finish.reason}"
        error = {"code": "server_error", "message": message}
        return {"status": "failed", "incomplete_details": None, "error": error}
    reason = _REASONS.get(finish.reason) or finish.raw or finish.reason or "unknown"
    return {"status": "incomplete", "incomplete_details": {"reason": reason}, "error": None}


class InputDetails(msgspec.Struct):
    """Part of the usage."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class OutputDetails(msgspec.Struct):
    """Part of the usage."""

    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """Usage on the wire. Totals include cached and reasoning tokens."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: InputDetails | None = None
    output_tokens_details: OutputDetails | None = None


def read_usage(wire: WireUsage, service_tier: object = None) -> Usage | None:
    """Return what the provider reported and in which tier it served; None when a total is missing."""
    if wire.input_tokens is None or wire.output_tokens is None:
        return None
    given = wire.input_tokens_details or InputDetails()
    made = wire.output_tokens_details or OutputDetails()
    return reported(
        service_tier=service_tier if isinstance(service_tier, str) else "",
        input_total=wire.input_tokens,
        output_total=wire.output_tokens,
        cache_read=given.cached_tokens or 0,
        cache_write=given.cache_write_tokens or 0,
        output_reasoning=made.reasoning_tokens or 0,
    )


def write_usage(usage: Usage) -> dict[str, Any]:
    """Return the usage as the format's clients read it."""
    return {
        "input_tokens": usage.input_total,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write,
        },
        "output_tokens": usage.output_total,
        "output_tokens_details": {"reasoning_tokens": usage.output_reasoning},
        "total_tokens": usage.input_total + usage.output_total,
    }
