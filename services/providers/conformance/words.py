"""The words of the contract that fields of type string may hold, and what an answer says about itself."""

from __future__ import annotations

from omnihub.common.v1.chat_pb2 import Finish, Message, ParameterReceipt, Usage

from services.providers.conformance.kit import require
from services.providers.domain.clauses import BreachError

FEATURES = frozenset(
    {
        "chat",
        "stream",
        "embed",
        "tools",
        "vision",
        "audio",
        "documents",
        "json_schema",
        "reasoning",
        "prefill",
        "responses",
    }
)
FINISHES = frozenset(
    {
        "stop",
        "length",
        "tool_calls",
        "content_filter",
        "refusal",
        "pause",
        "context_exceeded",
        "malformed",
        "error",
        "cancelled",
        "unknown",
    }
)
OUTCOMES = frozenset({"forwarded", "translated", "clamped", "added", "dropped"})


def check_finish(finish: Finish, clause: str) -> None:
    """Judge why an answer ended."""
    require(bool(finish.reason), clause, "`finish.reason` is empty")
    require(finish.reason in FINISHES, clause, f"`finish.reason` is {finish.reason!r}")


def check_usage(usage: Usage | None, clause: str) -> None:
    """Judge a usage; None when there was none."""
    if usage is None:
        raise BreachError(
            clause, "`usage` is missing; count it and set `estimated` when the model does not say"
        )
    require(usage.input_total > 0, clause, "`usage.input_total` is 0, but there was input")
    total, parts = "input_total", usage.cache_read + usage.cache_write
    pairs = [
        (total, usage.input_total, "cache_read + cache_write", parts),
        (total, usage.input_total, "input_audio + input_image", usage.input_audio + usage.input_image),
        ("output_total", usage.output_total, "output_reasoning", usage.output_reasoning),
        ("output_total", usage.output_total, "output_audio", usage.output_audio),
        ("cache_write", usage.cache_write, "cache_write_1h", usage.cache_write_1h),
    ]
    for name, whole, part, size in pairs:
        require(size <= whole, "ANSWER-4", f"{part} is {size}, {name} only {whole}")


def check_receipt(receipt: list[ParameterReceipt]) -> None:
    """Judge the entries of a receipt."""
    for entry in receipt:
        require(bool(entry.name), "RECEIPT-1", "an entry of the receipt names no parameter")
        words = ", ".join(sorted(OUTCOMES))
        message = f"the outcome of {entry.name} is {entry.outcome!r}; the words are {words}"
        require(entry.outcome in OUTCOMES, "RECEIPT-1", message)


def text_of(message: Message) -> str:
    """Return the text of an answer."""
    return message.content + "".join(part.text.text for part in message.parts)
