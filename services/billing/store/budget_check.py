"""The checker's part about limits: what each counter says was used, counted anew from the usage events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from services.billing.domain.difference import Difference
from services.billing.domain.limit import PLAN, Limit
from services.billing.domain.plan import Plan, PlanBook
from services.billing.store.budget_tables import budget_counter, budget_limit, organisation_plan, plan
from services.billing.store.limits import SCOPE_COLUMNS, limit_of, stored_plan
from services.billing.store.tables import usage_event

# Counters that one statement counts anew.
TOGETHER = 500
# A window without an end.
NEVER = 2**62
_COLUMNS: tuple[sa.ColumnClause[Any], ...] = (
    sa.column("number", sa.BigInteger),
    sa.column("organisation_id", sa.String),
    sa.column("scope", sa.String),
    sa.column("scope_id", sa.String),
    sa.column("measure", sa.String),
    sa.column("start", sa.BigInteger),
    sa.column("until", sa.BigInteger),
)


def check_counters(connection: sa.Connection, plan_book: PlanBook | None) -> Iterator[Difference]:
    """Yield what counters say that the usage events do not.

    Counters of what a plan no longer says are not looked at, for nothing is counted there any more.
    Without a plan book none of plans are.
    """
    limits = _Limits(connection, plan_book)
    after = "", -1
    while counters := _page(connection, after):
        after = counters[-1].limit_id, counters[-1].window_start
        known = [(row, limit) for row in counters if (limit := limits.of(row.limit_id)) is not None]
        if not known:
            continue
        used = _count(connection, known)
        for number, (row, _) in enumerate(known):
            if used[number] != row.spent:
                subject = f"{row.limit_id} {row.window_start}"
                yield Difference("budget_spent", subject, str(used[number]), str(row.spent))


def _page(connection: sa.Connection, after: tuple[str, int]) -> Sequence[Any]:
    key = budget_counter.c.limit_id, budget_counter.c.window_start
    query = sa.select(budget_counter).where(sa.tuple_(*key) > sa.tuple_(*map(sa.literal, after)))
    return connection.execute(query.order_by(*key).limit(TOGETHER)).all()


def _count(connection: sa.Connection, counters: Sequence[tuple[Any, Limit]]) -> Mapping[int, int]:
    """Return what the usage events of windows come to, by the position of their counter."""
    rows = [
        (
            number,
            limit.organisation_id,
            limit.scope,
            limit.scope_id,
            limit.measure,
            max(row.window_start, limit.since),
            NEVER if row.window_end is None else row.window_end,
        )
        for number, (row, limit) in enumerate(counters)
    ]
    checked = sa.values(*_COLUMNS, name="checked").data(rows).cte("checked")
    whose = sa.case(
        *((checked.c.scope == scope, column) for scope, column in SCOPE_COLUMNS.items()), else_=sa.null()
    )
    tokens = sa.case(
        (usage_event.c.cost_source == "cache", 0),
        else_=usage_event.c.input_total + usage_event.c.output_total,
    )
    units = sa.case(
        (usage_event.c.id.is_(None), 0),
        (checked.c.measure == "credits", usage_event.c.amount),
        (checked.c.measure == "tokens", tokens),
        (checked.c.measure == "requests", 1),
        else_=0,
    )
    counted = sa.and_(
        usage_event.c.organisation_id == checked.c.organisation_id,
        usage_event.c.at >= checked.c.start,
        usage_event.c.at < checked.c.until,
        whose == checked.c.scope_id,
    )
    query = sa.select(checked.c.number, sa.func.sum(units)).group_by(checked.c.number)
    found = connection.execute(query.select_from(checked.outerjoin(usage_event, counted)))
    return {int(number): int(total) for number, total in found}


class _Limits:
    """The limits that count at present, by id."""

    def __init__(self, connection: sa.Connection, plan_book: PlanBook | None) -> None:
        self._set = {row.id: limit_of(row) for row in connection.execute(sa.select(budget_limit))}
        self._plans: Mapping[str, Plan] = {}
        self._default = ""
        self._assigned: Mapping[str, tuple[str, str]] = {}
        self._of_plans: dict[str, dict[str, Limit]] = {}
        if plan_book is not None:
            rows = connection.execute(sa.select(plan.c.name, plan.c.content, plan.c.revision))
            self._plans = plan_book.with_stored({row.name: stored_plan(row) for row in rows})
            self._default = plan_book.default
            assigned = connection.execute(sa.select(organisation_plan))
            self._assigned = {row.organisation_id: (row.plan, row.assignment_id) for row in assigned}

    def of(self, limit_id: str) -> Limit | None:
        """Return a limit that counts."""
        if not limit_id.startswith(PLAN):
            return self._set.get(limit_id)
        # The organisation is the last of the words that `Plan.limits_of` puts together.
        organisation_id = limit_id.split(":", 6)[-1]
        known = self._of_plans.get(organisation_id)
        if known is None:
            known = self._of_plans[organisation_id] = self._of_plan(organisation_id)
        return known.get(limit_id)

    def _of_plan(self, organisation_id: str) -> dict[str, Limit]:
        name, assignment_id = self._assigned.get(organisation_id, ("", ""))
        found = self._plans.get(name or self._default)
        limits = [] if found is None else found.limits_of(organisation_id, assignment_id)
        return {limit.id: limit for limit in limits}
