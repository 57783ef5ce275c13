"""Stop reasons and usage, both ways."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import Finish, Usage

from services.formats.usage import reported

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "pause_turn": "pause",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_exceeded",
}
_WORDS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "pause": "pause_turn",
    "refusal": "refusal",
    "content_filter": "refusal",
    "context_exceeded": "model_context_window_exceeded",
}


def read_finish(word: str, stop_sequence: str = "") -> Finish:
    """Return the finish that `word` means; a word nobody knows is `unknown`, never `stop`."""
    return Finish(reason=_REASONS.get(word, "unknown"), raw=word, stop_sequence=stop_sequence)


def write_finish(finish: Finish) -> str:
    """Return Anthropic's word, the provider's own one where it is one of Anthropic's."""
    if finish.raw and _REASONS.get(finish.raw) == finish.reason:
        return finish.raw
    if finish.reason == "stop" and finish.stop_sequence:
        return "stop_sequence"
    return _WORDS.get(finish.reason) or finish.raw or "unknown"


class CacheCreation(msgspec.Struct):
    """Part of the usage."""

    ephemeral_1h_input_tokens: int | None = None


class OutputDetails(msgspec.Struct):
    """Part of the usage."""

    thinking_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """Usage on the wire. `input_tokens` leaves out what came from or went into a cache."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: CacheCreation | None = None
    output_tokens_details: OutputDetails | None = None
    service_tier: Any = None

    def updated(self, later: WireUsage) -> WireUsage:
        """Return this usage with what `later` says instead: later figures are cumulative."""
        return WireUsage(
            *(
                new if (new := getattr(later, name)) is not None else getattr(self, name)
                for name in self.__struct_fields__
            )
        )


def read_usage(wire: WireUsage) -> Usage | None:
    """Return the usage that the provider reported, totals including their parts; None without both totals."""
    if wire.input_tokens is None or wire.output_tokens is None:
        return None
    cache_read = wire.cache_read_input_tokens or 0
    cache_write = wire.cache_creation_input_tokens or 0
    details = wire.output_tokens_details
    return reported(
        service_tier=wire.service_tier if isinstance(wire.service_tier, str) else "",
        input_total=wire.input_tokens + cache_read + cache_write,
        cache_read=cache_read,
        cache_write=cache_write,
        cache_write_1h=(wire.cache_creation.ephemeral_1h_input_tokens or 0) if wire.cache_creation else 0,
        output_total=wire.output_tokens,
        output_reasoning=(details.thinking_tokens or 0) if details else 0,
    )


def write_usage(usage: Usage) -> dict[str, Any]:
    """Return the usage as Anthropic's clients read it."""
    wire: dict[str, Any] = {
        "input_tokens": max(0, usage.input_total - usage.cache_read - usage.cache_write),
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.output_total,
    }
    if usage.cache_write_1h:
        wire["cache_creation"] = {
            "ephemeral_5m_input_tokens": max(0, usage.cache_write - usage.cache_write_1h),
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        }
    if usage.output_reasoning:
        wire["output_tokens_details"] = {"thinking_tokens": usage.output_reasoning}
    return wire
