"""Limits as a process applies them: rules, slices of them, and what one request draws. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.credits.windows import window_end, window_start

CONCURRENCY = "concurrency"
Subject = tuple[str, str]
"""A scope and its id, such as ("key", "key_1")."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One hard limit. `amount` is in nano-credits, requests, tokens or slots."""

    limit_id: str
    scope: str
    scope_id: str
    measure: str
    window: str
    amount: int


@dataclass(frozen=True, slots=True)
class OrganisationRules:
    """What applies to an organisation."""

    plan: str = ""
    allowed_models: tuple[str, ...] = ()
    by_subject: Mapping[Subject, tuple[Rule, ...]] = field(default_factory=dict)

    def applicable(self, subjects: Iterable[Subject]) -> list[Rule]:
        """Return all rules for any of these."""
        known = self.by_subject
        return [rule for subject in subjects if subject in known for rule in known[subject]]


def rules_of(plan: str, allowed_models: Iterable[str], rules: Iterable[Rule]) -> OrganisationRules:
    """Return rules, ready to be looked up."""
    by_subject: dict[Subject, tuple[Rule, ...]] = {}
    for rule in rules:
        subject = rule.scope, rule.scope_id
        by_subject[subject] = (*by_subject.get(subject, ()), rule)
    return OrganisationRules(plan, tuple(allowed_models), by_subject)


@dataclass(slots=True)
class Slice:
    """What this process may spend of one window of a limit. All amounts in the limit's units."""

    slice_id: str
    rule: Rule
    organisation_id: str
    window_start: int
    window_end: int | None
    granted: int = 0
    reserved: int = 0
    spent: int = 0
    available: int = 0
    """What was left for others when it was last raised."""
    expires_at: float = 0.0
    used_at: float = 0.0

    @property
    def free(self) -> int:
        """Return what a new request can reserve."""
        return self.granted - self.reserved - self.spent

    @property
    def kept(self) -> int:
        """Return what stays when the rest is returned."""
        return self.reserved + self.spent

    def is_over(self, at: int) -> bool:
        """Tell whether its window has ended."""
        return self.window_end is not None and at >= self.window_end


@dataclass(slots=True)
class Draw:
    """What one request has reserved of a slice."""

    slice: Slice
    amount: int


@dataclass(slots=True)
class Drawn:
    """All that one request has reserved of limits, admitted at the moment `at` in microseconds."""

    at: int
    draws: list[Draw]
    organisation_id: str = ""
    unused: Sequence[Rule] = ()
    """Rules it needed nothing of, such as budgets when the first candidate is free."""

    @property
    def tokens(self) -> int:
        """Return how many tokens are reserved; 0 when no limit counts them."""
        return next((draw.amount for draw in self.draws if draw.slice.rule.measure == "tokens"), 0)

    @property
    def slice_ids(self) -> list[str]:
        """Return the slices that its charge is booked against: slots are never charged."""
        return [draw.slice.slice_id for draw in self.draws if draw.slice.rule.measure != CONCURRENCY]


Need = tuple[Rule, int]
"""A rule, and how much of it one request needs."""


def needs_of(rules: Iterable[Rule], nano: int, tokens: int) -> list[Need]:
    """Return what a request needs that may cost `nano` and have `tokens`. What needs nothing is left out."""
    units = {"credits": nano, "tokens": tokens, "requests": 1, CONCURRENCY: 1}
    return [(rule, units[rule.measure]) for rule in rules if units[rule.measure]]


def units_spent(nano: int, tokens: int) -> dict[str, int]:
    """Return what a charge uses, by measure: slots are never charged."""
    return {"credits": nano, "tokens": tokens, "requests": 1, CONCURRENCY: 0}


class Windows:
    """Windows of the present, remembered: a calendar is too slow to ask for each request."""

    def __init__(self) -> None:
        self._present: dict[str, tuple[int, int | None]] = {}

    def of(self, window: str, at: int) -> tuple[int, int | None]:
        """Return when the window that holds `at` begins and ends."""
        known = self._present.get(window)
        if known is None or at < known[0] or (known[1] is not None and at >= known[1]):
            known = self._present[window] = window_start(window, at), window_end(window, at)
        return known
