"""Plans: what organisations get and may do, as data."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.billing.domain.errors import InvalidFieldError
from services.billing.domain.limit import PLAN, Limit, Terms, read_limit
from services.credits.money import parse_nano
from services.credits.windows import window_end, window_start

SHIPPED, FILE, ADMINISTRATOR = "shipped", "file", "administrator"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True)
class WrittenTerms:
    """LimitTerms as a data file or a settings file has them."""

    measure: str
    amount: str
    window: str = ""
    enforcement: str = "hard"
    alert_at_percent: tuple[int, ...] = ()
    scope: str = ""
    scope_id: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """One plan. `limits` apply to the organisation as a whole."""

    name: str
    display_name: str = ""
    monthly_credits: str = ""
    allowed_models: tuple[str, ...] = ()
    limits: tuple[WrittenTerms, ...] = ()
    managed_by: str = SHIPPED
    revision: str = ""
    """Changes whenever an administrator changes it."""

    @property
    def allowance(self) -> int:
        """Return the nano-credits of a month."""
        return parse_nano(self.monthly_credits or "0")

    @property
    def version(self) -> str:
        """Return a short name of this content."""
        content = json.dumps([self.name, self.revision, [_as_list(terms) for terms in self.limits]])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def limits_of(self, organisation_id: str, assignment_id: str) -> list[Limit]:
        """Return what applies to an organisation on it; `assignment_id` is empty on the default plan.

        Each change of a plan or an assignment gives them new ids, so that what they count is counted anew.
        """
        managed_by = f"{PLAN}{self.name}"
        limits = []
        for terms in self.limits:
            kind = "soft" if terms.enforcement == "soft" else "hard"
            words = ("plan", self.version, assignment_id, terms.measure, terms.window, kind, organisation_id)
            limit = read_limit(terms, ":".join(words), organisation_id, managed_by, 0)
            limits.append(replace(limit, since=0))
        return limits


def _as_list(terms: WrittenTerms) -> list[object]:
    return [terms.measure, terms.amount, terms.window, terms.enforcement, list(terms.alert_at_percent)]


def read_plan(
    name: str,
    display_name: str,
    monthly_credits: str,
    allowed_models: Sequence[str],
    limits: Sequence[Terms],
    managed_by: str,
    revision: str = "",
) -> Plan:
    """Return a plan that holds together. Raises InvalidFieldError."""
    if not _NAME.fullmatch(name):
        raise InvalidFieldError("plan.name", "write lower case letters, digits and dashes, at most 40")
    try:
        if parse_nano(monthly_credits or "0") < 0:
            raise InvalidFieldError("plan.monthly_credits", "must not be negative")
    except ValueError as error:
        raise InvalidFieldError("plan.monthly_credits", str(error)) from None
    written = []
    for terms in limits:
        if terms.scope not in ("", "organisation") or terms.scope_id:
            raise InvalidFieldError("plan.limits", "apply to the organisation as a whole; leave scope empty")
        # Complains of whatever is wrong.
        read_limit(terms, "-", "-", PLAN, 0)
        percents = tuple(terms.alert_at_percent)
        kind = terms.enforcement or "hard"
        written.append(WrittenTerms(terms.measure, terms.amount, terms.window, kind, percents))
    if len({(terms.measure, terms.window, terms.enforcement) for terms in written}) < len(written):
        raise InvalidFieldError("plan.limits", "holds two limits of the same measure, window and enforcement")
    plan = Plan(name, display_name, monthly_credits, tuple(allowed_models), tuple(written), managed_by)
    return replace(plan, revision=revision)


def plan_to_json(plan: Plan) -> str:
    """Return a plan as it is stored."""
    limits = [_as_list(terms) for terms in plan.limits]
    return json.dumps([plan.display_name, plan.monthly_credits, list(plan.allowed_models), limits])


def plan_from_json(name: str, text: str, revision: str) -> Plan:
    """Return a stored plan."""
    display_name, monthly_credits, allowed_models, limits = json.loads(text)
    written = tuple(
        WrittenTerms(measure, amount, window, enforcement, tuple(percents))
        for measure, amount, window, enforcement, percents in limits
    )
    return Plan(name, display_name, monthly_credits, tuple(allowed_models), written, ADMINISTRATOR, revision)


@dataclass(frozen=True, slots=True)
class PlanBook:
    """The plans that files give: shipped ones and those of omnihub.toml, which win."""

    plans: Mapping[str, Plan]
    default: str = ""

    def with_stored(self, stored: Mapping[str, Plan]) -> dict[str, Plan]:
        """Return all plans. What administrators wrote wins over what is shipped, not over omnihub.toml."""
        files = {name: plan for name, plan in self.plans.items() if plan.managed_by == FILE}
        return {**self.plans, **stored, **files}


def read_book(shipped: Mapping[str, Any], configured: Mapping[str, Any], default: str) -> PlanBook:
    """Return the plans of both files, each a mapping by name. Raises InvalidFieldError."""
    plans = {}
    for managed_by, written in ((SHIPPED, shipped), (FILE, configured)):
        for name, values in written.items():
            limits = [WrittenTerms(**terms) for terms in values.get("limits", ())]
            plans[name] = read_plan(
                name,
                values.get("display_name", ""),
                str(values.get("monthly_credits", "")),
                values.get("allowed_models", ()),
                limits,
                managed_by,
            )
    if default and default not in plans:
        raise InvalidFieldError(
            "billing.default_plan", f"there is no plan {default!r}; known: {', '.join(plans)}"
        )
    return PlanBook(plans, default)


def month_of(now: int) -> tuple[int, int]:
    """Return when the present month began and when it ends, in microseconds."""
    end = window_end("month", now)
    assert end is not None
    return window_start("month", now), end
