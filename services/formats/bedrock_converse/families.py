"""Parameters that only some models take: each maker's own, in `additionalModelRequestFields`."""

from __future__ import annotations

import re
from typing import Any

from omnihub.common.v1.chat_pb2 import ChatInput

from services.formats.receipts import Receipts
from services.formats.thinking import called_without_thoughts, thinks_before_calls

_CLAUDE, _MISTRAL, _COHERE, _NOVA, _OPENAI = "anthropic", "mistral", "cohere", "amazon", "openai"
# In "anthropic.claude-x", "eu.anthropic.claude-x" and ".../foundation-model/anthropic.claude-x" alike.
_MAKER = re.compile(r"(?:^|[./:])(anthropic|mistral|cohere|amazon|openai)\.")
_TOP_K = {_CLAUDE: ("top_k",), _MISTRAL: ("top_k",), _COHERE: ("k",), _NOVA: ("inferenceConfig", "topK")}
# Tokens to think with, and the least that the maker takes.
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576, "xhigh": 32768}
_LEAST_BUDGET = 1024
_DEFAULT_MAX_TOKENS = 4096


def maker_of(model: str) -> str:
    """Return who made a model, as far as its id tells; empty for others."""
    found = _MAKER.search(model)
    return found[1] if found else ""


def takes_thinking(thinking: str, chat: ChatInput, model: str) -> bool:
    """Tell whether the model's maker has a parameter `thinking`, and takes it in this conversation."""
    refused = thinks_before_calls(thinking) and called_without_thoughts(chat.messages)
    return maker_of(model) == _CLAUDE and not refused


def write_top_k(extra: dict[str, Any], chat: ChatInput, model: str, receipts: Receipts) -> None:
    """Write top_k where the model's maker has it."""
    if not chat.HasField("top_k"):
        return
    path = _TOP_K.get(maker_of(model))
    if path is None:
        receipts.dropped("top_k", "this model has no top_k")
        return
    *outer, last = path
    target = extra
    for name in outer:
        target = target.setdefault(name, {})
    target[last] = chat.top_k
    receipts.translated("top_k", "additionalModelRequestFields." + ".".join(path))


def write_effort(
    extra: dict[str, Any], inference: dict[str, Any], chat: ChatInput, model: str, receipts: Receipts
) -> None:
    """Write how much to think: a budget, a word, or nothing, by the model's maker."""
    effort, maker = chat.reasoning_effort, maker_of(model)
    if not effort or "thinking" in extra:
        return
    if maker == _CLAUDE and effort != "none" and "maxTokens" not in inference:
        inference["maxTokens"] = _DEFAULT_MAX_TOKENS
        receipts.added("max_tokens", str(_DEFAULT_MAX_TOKENS))
    if maker == _OPENAI:
        extra["reasoning_effort"] = effort
        receipts.translated("reasoning_effort", "additionalModelRequestFields.reasoning_effort")
    elif effort == "none":
        receipts.translated("reasoning_effort", "nothing is asked for")
    elif maker != _CLAUDE:
        receipts.dropped("reasoning_effort", "this model takes no effort")
    elif obstacle := _obstacle(inference, chat):
        receipts.dropped("reasoning_effort", obstacle)
    else:
        _think(extra, inference, effort, receipts)


def _think(extra: dict[str, Any], inference: dict[str, Any], effort: str, receipts: Receipts) -> None:
    budget = min(_BUDGETS.get(effort, _BUDGETS["medium"]), inference["maxTokens"] - 1)
    extra["thinking"] = {"type": "enabled", "budget_tokens": budget}
    receipts.translated("reasoning_effort", f"thinking with {budget} tokens")
    for fields, name, ours in (
        (inference, "temperature", "temperature"),
        (inference, "topP", "top_p"),
        (extra, "top_k", "top_k"),
    ):
        if fields.pop(name, None) is not None:
            receipts.dropped(ours, "this model does not take it while thinking")


def _obstacle(inference: dict[str, Any], chat: ChatInput) -> str:
    if inference["maxTokens"] <= _LEAST_BUDGET:
        return f"thinking needs max_tokens above {_LEAST_BUDGET}"
    if chat.tool_choice.mode in {"required", "named"}:
        return "this model does not think when a tool is forced"
    if called_without_thoughts(chat.messages):
        return "the last tool call came without thoughts, which this model then refuses"
    return ""


def tells_stop_sequence(model: str) -> bool:
    """Tell whether the model says which stop sequence it met, when it is asked to."""
    return maker_of(model) == _CLAUDE
