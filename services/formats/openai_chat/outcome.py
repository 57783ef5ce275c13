"""Finish reasons and usage, both ways."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Finish, Usage

from services.formats.usage import reported

FAILED = msgspec.Raw(b'{"message": "the provider ended its answer with an error, and did not say which"}')
"""The error of a choice that finished with one and tells nothing more."""
_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_WORDS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
    "pause": "stop",
    "context_exceeded": "length",
    "malformed": "error",
    "error": "error",
    "cancelled": "error",
}


def read_finish(word: str) -> Finish:
    """Return the finish that `word` means; a word nobody knows is `unknown`, never `stop`."""
    return Finish(reason=_REASONS.get(word, "unknown"), raw=word)


def write_finish(finish: Finish) -> str:
    """Return OpenAI's word, the provider's own one where it is one of OpenAI's."""
    if finish.raw and _REASONS.get(finish.raw) == finish.reason:
        return finish.raw
    return _WORDS.get(finish.reason) or finish.raw or "unknown"


class PromptDetails(msgspec.Struct):
    """Part of the usage."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    image_tokens: int | None = None


class CompletionDetails(msgspec.Struct):
    """Part of the usage."""

    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """Usage on the wire. Totals include cached and reasoning tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None
    # Some back ends report it at the top level.
    cached_tokens: int | None = None
    cost: msgspec.Raw = msgspec.Raw(b"")


def read_usage(wire: WireUsage, service_tier: object = None) -> Usage | None:
    """Return what the provider reported and in which tier it served; None when a total is missing."""
    if wire.prompt_tokens is None or wire.completion_tokens is None:
        return None
    counts: dict[str, Any] = {"input_total": wire.prompt_tokens, "output_total": wire.completion_tokens}
    # Most answers have few of these, and each one that is set costs.
    if isinstance(service_tier, str):
        counts["service_tier"] = service_tier
    if wire.cached_tokens:
        counts["cache_read"] = wire.cached_tokens
    if (prompt := wire.prompt_tokens_details) is not None:
        counts["cache_read"] = prompt.cached_tokens or wire.cached_tokens or 0
        counts["cache_write"] = prompt.cache_write_tokens or 0
        counts["input_audio"] = prompt.audio_tokens or 0
        counts["input_image"] = prompt.image_tokens or 0
    if (completion := wire.completion_tokens_details) is not None:
        counts["output_reasoning"] = completion.reasoning_tokens or 0
        counts["output_audio"] = completion.audio_tokens or 0
    if wire.cost:
        counts["provider_cost"] = _decimal(wire.cost)
    return reported(**counts)


def _decimal(raw: msgspec.Raw) -> str:
    """Return a JSON number exactly, without an exponent; empty for anything else."""
    try:
        cost = Decimal(bytes(raw).decode("ascii", "replace"))
    except ArithmeticError:
        return ""
    return f"{cost:f}" if cost.is_finite() and cost >= 0 else ""


def write_usage(usage: Usage) -> dict[str, Any]:
    """Return the usage as OpenAI's clients read it."""
    wire: dict[str, Any] = {
        "prompt_tokens": usage.input_total,
        "completion_tokens": usage.output_total,
        "total_tokens": usage.input_total + usage.output_total,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read,
            "audio_tokens": usage.input_audio,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.output_reasoning,
            "audio_tokens": usage.output_audio,
        },
    }
    if usage.cache_write:
        wire["prompt_tokens_details"]["cache_write_tokens"] = usage.cache_write
    if usage.input_image:
        wire["prompt_tokens_details"]["image_tokens"] = usage.input_image
    return wire
