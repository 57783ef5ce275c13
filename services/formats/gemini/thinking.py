"""How much to think: effort in other formats, a level or a budget of tokens in this one."""

from __future__ import annotations

from typing import Any

import msgspec

from services.formats.documents import is_null, read_value
from services.formats.gemini.messages import generation_of
from services.formats.receipts import Receipts

_BUDGETS = {"minimal": 1024, "low": 4096, "medium": 8192, "high": 24576}
# From this generation on models take a level; earlier ones refuse it.
_LEVELS_SINCE = 3


class _ThinkingConfig(msgspec.Struct):
    thinkingBudget: int | None = None  # noqa: N815 - the vendor's name
    thinkingLevel: str | None = None  # noqa: N815 - the vendor's name


def effort_of(raw: msgspec.Raw | None) -> str:
    """Return the effort nearest to a `thinkingConfig`; empty when it names none."""
    if raw is None or is_null(raw):
        return ""
    config = read_value(raw, _ThinkingConfig, "generationConfig.thinkingConfig")
    level = (config.thinkingLevel or "").lower()
    if level:
        return {"xhigh": "high"}.get(level, level if level in _BUDGETS else "")
    if config.thinkingBudget is None or config.thinkingBudget < 0:
        return ""
    if config.thinkingBudget == 0:
        return "none"
    fitting = [effort for effort, budget in _BUDGETS.items() if budget <= config.thinkingBudget]
    return fitting[-1] if fitting else "minimal"


def write_thinking(effort: str, model: str, receipts: Receipts) -> dict[str, Any] | None:
    """Return the `thinkingConfig` of an effort, None for the model's own."""
    if not effort:
        return None
    if generation_of(model) >= _LEVELS_SINCE:
        # Not every model takes less than low.
        level = {"none": "low", "minimal": "low", "xhigh": "high"}.get(effort, effort)
        config: dict[str, Any] = {"thinkingLevel": level}
        what = f"generationConfig.thinkingConfig.thinkingLevel {level}"
    else:
        budget = 0 if effort == "none" else _BUDGETS.get(effort, _BUDGETS["high"])
        config = {"thinkingBudget": budget}
        what = f"generationConfig.thinkingConfig.thinkingBudget {budget}"
    receipts.translated("reasoning_effort", what)
    return config if effort == "none" else {**config, "includeThoughts": True}
