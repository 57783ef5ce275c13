"""Limits: what they are made of, which apply to a charge, how a slice is cut, and why one is refused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from services.billing.domain.errors import (
    BillingError,
    BudgetLimitError,
    EstimateExceedsBudgetError,
    InFlightBudgetExhaustedError,
    InvalidFieldError,
    RateLimitedError,
)
from services.billing.domain.ledger import LARGEST_AMOUNT, check_id
from services.credits.money import NANO, format_nano, parse_nano
from services.credits.windows import SECOND, window_end

SCOPES = ("organisation", "workspace", "project", "key", "agent", "run")
MEASURES = ("credits", "requests", "tokens", "concurrency")
WINDOWS = ("minute", "hour", "day", "week", "month", "total", "lifetime")
SOFT_THRESHOLDS = (80, 100)
ORGANISATION, PLATFORM, PLAN = "organisation", "platform", "plan:"
# A slice may take this part of what is left beyond the request that needs it, in whole requests.
SHARE = 20
# No slice of credits is larger, unless one request needs more.
LARGEST_SLICE_NANO = 5 * NANO
IN_FLIGHT_RETRY_S = 1.0


class Terms(Protocol):
    """LimitTerms of the contract, read only."""

    @property
    def scope(self) -> str: ...  # noqa: D102
    @property
    def scope_id(self) -> str: ...  # noqa: D102
    @property
    def measure(self) -> str: ...  # noqa: D102
    @property
    def window(self) -> str: ...  # noqa: D102
    @property
    def amount(self) -> str: ...  # noqa: D102
    @property
    def enforcement(self) -> str: ...  # noqa: D102
    @property
    def alert_at_percent(self) -> Sequence[int]: ...  # noqa: D102


class Charged(Protocol):
    """What limits read of a charge."""

    @property
    def organisation_id(self) -> str: ...  # noqa: D102
    @property
    def workspace_id(self) -> str: ...  # noqa: D102
    @property
    def project_id(self) -> str: ...  # noqa: D102
    @property
    def key_id(self) -> str: ...  # noqa: D102
    @property
    def agent_id(self) -> str: ...  # noqa: D102
    @property
    def run_id(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit. `amount` is in whole nano-credits, requests, tokens or slots."""

    id: str
    organisation_id: str
    scope: str
    scope_id: str
    measure: str
    window: str
    amount: int
    hard: bool = True
    thresholds: tuple[int, ...] = ()
    """Per cent of the amount at which an alert is raised."""
    managed_by: str = ORGANISATION
    since: int = 0
    """Usage before this moment, in microseconds, does not count."""

    @property
    def subject(self) -> tuple[str, str]:
        """Return whose usage it counts."""
        return self.scope, self.scope_id

    def describe(self, amount: int | None = None) -> str:
        """Return an amount of it in words."""
        value = self.amount if amount is None else amount
        if self.measure == "concurrency":
            return f"{value} requests at the same time"
        return f"{format_amount(self.measure, value)} {self.measure}"


def read_limit(terms: Terms, limit_id: str, organisation_id: str, managed_by: str, now: int) -> Limit:
    """Return the limit that `terms` describe. Raises InvalidFieldError naming the wrong field."""
    scope, measure, window = terms.scope or ORGANISATION, terms.measure, terms.window
    _check_choice("terms.scope", scope, SCOPES)
    _check_choice("terms.measure", measure, MEASURES)
    if (measure == "concurrency") != (window == ""):
        raise InvalidFieldError(
            "terms.window", "is for credits, requests and tokens, which need one; concurrency has none"
        )
    if window:
        _check_choice("terms.window", window, WINDOWS)
    hard = _read_enforcement(terms.enforcement)
    if measure == "concurrency" and not hard:
        raise InvalidFieldError("terms.enforcement", "a limit of concurrency can only be hard")
    return Limit(
        id=limit_id,
        organisation_id=organisation_id,
        scope=scope,
        scope_id=_read_scope_id(scope, terms.scope_id, organisation_id),
        measure=measure,
        window=window,
        amount=_read_amount(measure, terms.amount),
        hard=hard,
        thresholds=_read_thresholds(terms, hard),
        managed_by=managed_by,
        # Charges have whole milliseconds.
        since=now // 1000 * 1000 if window == "total" else 0,
    )


def _check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidFieldError(field, f"must be one of {', '.join(choices)}")


def _read_enforcement(enforcement: str) -> bool:
    _check_choice("terms.enforcement", enforcement or "hard", ("hard", "soft"))
    return enforcement != "soft"


def _read_thresholds(terms: Terms, hard: bool) -> tuple[int, ...]:
    for percent in terms.alert_at_percent:
        if not 1 <= percent <= 1000:
            raise InvalidFieldError("terms.alert_at_percent", "must be between 1 and 1000 per cent")
    if terms.alert_at_percent and terms.measure == "concurrency":
        raise InvalidFieldError("terms.alert_at_percent", "there are no alerts of concurrency")
    return tuple(sorted(set(terms.alert_at_percent))) or (() if hard else SOFT_THRESHOLDS)


def _read_scope_id(scope: str, scope_id: str, organisation_id: str) -> str:
    if scope != ORGANISATION:
        check_id("terms.scope_id", scope_id)
        return scope_id
    if scope_id not in ("", organisation_id):
        raise InvalidFieldError("terms.scope_id", "must be empty for the organisation itself")
    return organisation_id


def _read_amount(measure: str, text: str) -> int:
    try:
        amount = parse_nano(text)
    except ValueError as error:
        raise InvalidFieldError("terms.amount", str(error)) from None
    if measure != "credits":
        amount, fraction = divmod(amount, NANO)
        if fraction:
            raise InvalidFieldError("terms.amount", f"{measure} are whole numbers")
    if not 0 <= amount <= LARGEST_AMOUNT:
        raise InvalidFieldError("terms.amount", "must not be negative or above 1,000,000,000 credits")
    return amount


def format_amount(measure: str, amount: int) -> str:
    """Return an amount as callers write it."""
    return format_nano(amount) if measure == "credits" else str(amount)


def who_of(charge: Charged) -> tuple[str, ...]:
    """Return whose usage a charge is, in the order of SCOPES; empty where it is nobody's.

    Without the character NUL, as its event is stored: callers choose some of these names, and a database that
    refuses one would refuse every charge that is booked with it.
    """
    who = (
        charge.organisation_id,
        charge.workspace_id,
        charge.project_id,
        charge.key_id,
        charge.agent_id,
        charge.run_id,
    )
    return who if "\0" not in "".join(who) else tuple(name.replace("\0", "") for name in who)


def subjects_of(who: Sequence[str]) -> set[tuple[str, str]]:
    """Return everyone whose limits apply to what `who_of` returns."""
    return {(scope, scope_id) for scope, scope_id in zip(SCOPES, who, strict=True) if scope_id}


def units_of(amount_nano: int, tokens: int) -> dict[str, int]:
    """Return what one charge is in units of each measure. Slots are never charged."""
    return {"credits": amount_nano, "requests": 1, "tokens": tokens}


def grown_total(limit: Limit, available: int, granted: int, minimum_total: int, need: int) -> int | None:
    """Return the total a slice of `granted` grows to, or None when there is too little.

    `available` is what nobody has. The slice gets what it lacks, and beyond that a share of
    the rest in whole requests of size `need`: near the limit exactly one request fits.
    """
    lacks = max(0, minimum_total - granted)
    if lacks > available:
        return None
    if lacks == 0:
        return granted
    extra = (available - lacks) // (need * SHARE) * need
    if limit.measure == "credits":
        extra = min(extra, LARGEST_SLICE_NANO // need * need)
    return granted + lacks + extra


def crossed(limit: Limit, before: int, after: int) -> Iterable[int]:
    """Yield the thresholds that usage passed on its way."""
    for percent in limit.thresholds:
        if before * 100 < percent * limit.amount <= after * 100:
            yield percent


def refusal(limit: Limit, need: int, lacks: int, spent: int, at: int) -> BillingError:
    """Say why `lacks` more units cannot be set aside for a request of `need`, `spent` being used for good."""
    used_up = limit.measure != "concurrency" and spent + lacks > limit.amount
    about = {
        "limit_id": limit.id,
        "scope": limit.scope,
        "scope_id": limit.scope_id,
        "measure": limit.measure,
        "window": limit.window,
        "limit": format_amount(limit.measure, limit.amount),
        "spent": format_amount(limit.measure, spent),
        "remaining": format_amount(limit.measure, max(0, limit.amount - spent)),
        "used_up": "true" if used_up else "false",
    }
    end = window_end(limit.window, at)
    if end is not None:
        about["resets_in_ms"] = str(max(0, (end - at) // 1000))
    whose = f"the {limit.scope}" if limit.scope == ORGANISATION else f"the {limit.scope} {limit.scope_id}"
    allowed = f"{whose} may use {limit.describe()}" + (f" per {limit.window}" if limit.window else "")
    if need > limit.amount and limit.measure != "concurrency":
        return EstimateExceedsBudgetError(
            f"{allowed}, and this request alone may use {limit.describe(need)}; ask for less, or raise it",
            violations=(),
            **about,
        )
    if limit.measure == "concurrency" or limit.window == "minute":
        wait_s = IN_FLIGHT_RETRY_S if end is None or not used_up else max(0.0, (end - at) / SECOND)
        return RateLimitedError(f"{allowed}; retry shortly", wait_s, **about)
    if not used_up:
        waiting = InFlightBudgetExhaustedError(
            f"{allowed}: requests under way hold the rest; retry shortly", violations=(), **about
        )
        waiting.retry_after_s = IN_FLIGHT_RETRY_S
        return waiting
    until = "" if end is None else datetime.fromtimestamp(end // SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    when = f"it resets at {until}" if until else "it never resets"
    return BudgetLimitError(
        f"{allowed}, and {limit.describe(spent)} are used; {when}",
        violations=(),
        **about,
        resets_at=until,
    )
