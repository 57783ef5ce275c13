"""Stop reasons and usage."""

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
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
    "malformed_model_output": "malformed",
    "malformed_tool_use": "malformed",
    "model_context_window_exceeded": "context_exceeded",
}


class ResponseFields(msgspec.Struct):
    """What the model itself was asked to add."""

    stop_sequence: Any = None


def read_finish(word: str, added: ResponseFields | None) -> Finish:
    """Return the finish that `word` means; a word nobody knows is `unknown`, never `stop`."""
    sequence = added.stop_sequence if added is not None else None
    return Finish(
        reason=_REASONS.get(word, "unknown"),
        raw=word,
        stop_sequence=sequence if isinstance(sequence, str) else "",
    )


class _CacheDetail(msgspec.Struct):
    ttl: str = ""
    tokens: int = msgspec.field(default=0, name="inputTokens")


class WireUsage(msgspec.Struct):
    """Usage on the wire. `inputTokens` leaves out what came from or went into a cache."""

    input: int = msgspec.field(name="inputTokens")
    output: int = msgspec.field(name="outputTokens")
    cache_read: int | None = msgspec.field(default=None, name="cacheReadInputTokens")
    cache_write: int | None = msgspec.field(default=None, name="cacheWriteInputTokens")
    cache_details: list[_CacheDetail] | None = msgspec.field(default=None, name="cacheDetails")


def read_usage(wire: WireUsage) -> Usage | None:
    """Return the usage that the provider reported, totals including their parts."""
    cache_read, cache_write = wire.cache_read or 0, wire.cache_write or 0
    return reported(
        input_total=wire.input + cache_read + cache_write,
        cache_read=cache_read,
        cache_write=cache_write,
        cache_write_1h=sum(detail.tokens for detail in wire.cache_details or () if detail.ttl == "1h"),
        output_total=wire.output,
    )


class _Router(msgspec.Struct):
    model: str | None = msgspec.field(default=None, name="invokedModelId")


class Trace(msgspec.Struct):
    """What happened on the way, as far as the platform reads it."""

    router: _Router | None = msgspec.field(default=None, name="promptRouter")


def model_of(trace: Trace | None) -> str:
    """Return the model that a prompt router chose; empty without one."""
    return (trace.router.model or "") if trace is not None and trace.router is not None else ""
