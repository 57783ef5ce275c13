"""Which margin applies: one rule and no other, the most specific one.

Rules for the organisation come before rules for its plan, and those before rules for everyone; among
them a pattern without `*` comes first, then the one with more text in it. Rules never add up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from omnihub.billing.v1.price_pb2 import Margin

# Answers that are remembered; callers can name any model.
CACHE_SIZE = 50_000
ANY = "*"
# In place of an organisation: the plan of all that have none of their own.
EVERYONE_ELSE = "*"


class MarginBook:
    """All margins in force, by whom they are for. Immutable: a request keeps the book it began with."""

    def __init__(
        self, version: str = "", margins: Iterable[Margin] = (), plans: Mapping[str, str] | None = None
    ) -> None:
        self.version = version
        self._plans = plans or {}
        self._rules: dict[tuple[str, str], list[tuple[re.Pattern[str], Margin]]] = {}
        self._found: dict[tuple[str, str], Margin | None] = {}
        for margin in sorted(margins, key=_specificity):
            scope = margin.organisation_id, margin.plan
            self._rules.setdefault(scope, []).append((pattern_of(margin.model), margin))

    def __bool__(self) -> bool:
        return bool(self._rules)

    def of(self, organisation_id: str, model: str) -> Margin | None:
        """Return what is added for an organisation that uses a `provider/model`, or None."""
        if not self._rules:
            return None
        key = organisation_id, model
        if key not in self._found:
            if len(self._found) >= CACHE_SIZE:
                self._found.clear()
            self._found[key] = self._find(organisation_id, model)
        return self._found[key]

    def _find(self, organisation_id: str, model: str) -> Margin | None:
        plan = self._plans.get(organisation_id) or self._plans.get(EVERYONE_ELSE, "")
        for scope in ((organisation_id, ""), ("", plan), ("", "")):
            for pattern, margin in self._rules.get(scope, ()):
                if pattern.fullmatch(model):
                    return margin
        return None


def pattern_of(model: str) -> re.Pattern[str]:
    """Return the pattern of a rule as a regular expression: `*` stands for any text, all else for itself."""
    return re.compile(".*".join(map(re.escape, (model or ANY).split(ANY))), re.DOTALL)


def _specificity(margin: Margin) -> tuple[bool, int, str]:
    return ANY in (margin.model or ANY), -len(margin.model.replace(ANY, "")), margin.model


NO_MARGINS = MarginBook()
