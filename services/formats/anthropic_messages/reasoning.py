"""How much to think: effort in other formats, a budget of tokens in this one."""

from __future__ import annotations

from typing import Any

import msgspec
from omnihub.common.v1.chat_pb2 import ChatInput

from services.formats.details import is_sealed
from services.formats.documents import is_null, read_value
from services.formats.receipts import Receipts
from services.formats.thinking import called_without_thoughts, thinks_before_calls

# Tokens to think with, and the least that the provider takes.
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576, "xhigh": 32768}
_LEAST_BUDGET = 1024
_WITHOUT_THOUGHTS = "the last tool call came without thoughts, which this provider then refuses"


class _Thinking(msgspec.Struct):
    type: str = ""
    budget_tokens: int | None = None


def effort_of(raw: msgspec.Raw | None) -> str:
    """Return the effort nearest to a `thinking` parameter; empty when it names none."""
    if raw is None or is_null(raw):
        return ""
    thinking = read_value(raw, _Thinking, "thinking")
    if thinking.type != "enabled" or thinking.budget_tokens is None:
        return ""
    fitting = [effort for effort, budget in _BUDGETS.items() if budget <= thinking.budget_tokens]
    return {"xhigh": "high"}.get(fitting[-1], fitting[-1]) if fitting else "minimal"


def write_thinking(fields: dict[str, Any], chat: ChatInput, receipts: Receipts) -> None:
    """Translate the effort where the provider would take it; it refuses thinking next to some parameters."""
    effort = chat.reasoning_effort
    if not effort or "thinking" in chat.extension_json:
        return
    if effort == "none":
        fields["thinking"] = {"type": "disabled"}
        receipts.translated("reasoning_effort", "thinking disabled")
        return
    obstacle = _obstacle(fields, chat)
    if obstacle:
        receipts.dropped("reasoning_effort", obstacle)
        return
    budget = min(_BUDGETS.get(effort, _BUDGETS["medium"]), fields["max_tokens"] - 1)
    fields["thinking"] = {"type": "enabled", "budget_tokens": budget}
    receipts.translated("reasoning_effort", f"thinking with {budget} tokens")
    for name in ("temperature", "top_k", "top_p"):
        if fields.pop(name, None) is not None:
            receipts.dropped(name, "this provider does not take it while thinking")


def _obstacle(fields: dict[str, Any], chat: ChatInput) -> str:
    if fields["max_tokens"] <= _LEAST_BUDGET:
        return f"thinking needs max_tokens above {_LEAST_BUDGET}"
    if chat.tool_choice.mode in {"required", "named"}:
        return "this provider does not think when a tool is forced"
    return _WITHOUT_THOUGHTS if called_without_thoughts(chat.messages) else ""


def refusal_to_think(thinking: str, chat: ChatInput, own: bool) -> str:
    """Return why a `thinking` parameter cannot go on; empty when it can.

    A caller of the format itself means what it sends, unless it is here that thoughts are left out.
    """
    if own and not any(is_sealed(part.reasoning) for message in chat.messages for part in message.parts):
        return ""
    lost = thinks_before_calls(thinking) and called_without_thoughts(chat.messages)
    return _WITHOUT_THOUGHTS if lost else ""
