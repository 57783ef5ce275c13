"""Limits and their counters: who may use how much, and what charges have used of it.

A counter comes into being when somebody first looks at its window, and counts the usage events that
are there. A limit that is set meanwhile waits until no charge is being booked that has not seen it
(`_changing`), so that each charge counts exactly once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.accounts import wallet_of
from services.billing.domain.errors import NotFoundError
from services.billing.domain.limit import Limit
from services.billing.domain.plan import Plan, PlanBook, plan_from_json
from services.billing.store.auditing import keep_audit
from services.billing.store.budget_tables import (
    budget_counter,
    budget_limit,
    budget_slice,
    organisation_plan,
    plan,
)
from services.billing.store.tables import account, usage_event
from services.common.change_feed import ChangeFeed
from services.common.crash import CrashPoints
from services.common.db import Database
from services.credits.windows import window_end, window_start

TOPIC = "budget"
EVERYONE = "*"
# Booking shares this lock, changing limits and plans takes it alone. Only within billing's database.
_LOCK = 0x6F6D6E6962756467
_SHARE = sa.select(sa.func.pg_advisory_xact_lock_shared(_LOCK))
_ASSIGNED = sa.select(organisation_plan).where(
    organisation_plan.c.organisation_id.in_(sa.bindparam("organisations", expanding=True))
)
SCOPE_COLUMNS = {
    "organisation": usage_event.c.organisation_id,
    "workspace": usage_event.c.workspace_id,
    "project": usage_event.c.project_id,
    "key": usage_event.c.key_id,
    "agent": usage_event.c.agent_id,
    "run": usage_event.c.run_id,
}
_USED = {
    "credits": sa.func.sum(usage_event.c.amount),
    "requests": sa.func.count(),
    # A kept answer that is given again uses none.
    "tokens": sa.func.sum(
        sa.case(
            (usage_event.c.cost_source == "cache", 0),
            else_=usage_event.c.input_total + usage_event.c.output_total,
        )
    ),
}

Key = tuple[str, int]
"""A limit's id and when its window began."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What is used of a window for good, and what is set aside, in units of the limit."""

    spent: int = 0
    leased: int = 0


@dataclass(frozen=True, slots=True)
class Assigned:
    """The plan of an organisation, and the assignment that says so; empty on the default."""

    plan: Plan | None
    assignment_id: str = ""


class BudgetRecords:
    """What every part of the store of budgets builds on."""

    def __init__(self, database: Database, feed: ChangeFeed, plan_book: PlanBook) -> None:
        self.database = database
        self.feed = feed
        self.plan_book = plan_book
        self.crash = CrashPoints()
        self._insert: Any = sqlite.insert if database.sqlite else postgresql.insert

    async def _booking(self, connection: AsyncConnection) -> None:
        """See every limit there is, until this transaction ends."""
        if not self.database.sqlite:
            await connection.execute(_SHARE)

    async def _changing(self, connection: AsyncConnection) -> None:
        """Wait until nobody books who has not seen the change this transaction makes."""
        if not self.database.sqlite:
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))

    async def plans(self, connection: AsyncConnection) -> dict[str, Plan]:
        """Return all plans by name."""
        rows = await connection.execute(sa.select(plan.c.name, plan.c.content, plan.c.revision))
        stored = {row.name: stored_plan(row) for row in rows}
        return self.plan_book.with_stored(stored)

    async def assigned(
        self, connection: AsyncConnection, organisation_ids: Iterable[str]
    ) -> dict[str, Assigned]:
        """Return the plan of each organisation."""
        ids = list(organisation_ids)
        assigned = await connection.execute(_ASSIGNED, {"organisations": ids})
        rows = {row.organisation_id: row for row in assigned}
        if not rows and not self.plan_book.default:
            return {organisation_id: Assigned(None) for organisation_id in ids}
        plans = await self.plans(connection)
        found = {}
        for organisation_id in ids:
            row = rows.get(organisation_id)
            name = row.plan if row is not None and row.plan else self.plan_book.default
            found[organisation_id] = Assigned(plans.get(name), row.assignment_id if row is not None else "")
        return found

    async def _plan_limits(
        self, connection: AsyncConnection, organisation_ids: Iterable[str]
    ) -> dict[str, list[Limit]]:
        assigned = await self.assigned(connection, organisation_ids)
        return {
            organisation_id: []
            if each.plan is None
            else each.plan.limits_of(organisation_id, each.assignment_id)
            for organisation_id, each in assigned.items()
        }

    async def _counters(
        self, connection: AsyncConnection, wanted: Mapping[Key, Limit]
    ) -> tuple[dict[Key, Usage], set[Key]]:
        """Lock and return counters; tell which have just been made, and so count every charge there is."""
        rows = [_counter_row(limit, start) for (_, start), limit in sorted(wanted.items())]
        insert = self._insert(budget_counter).on_conflict_do_nothing()
        returning = insert.returning(budget_counter.c.limit_id, budget_counter.c.window_start)
        made = {(row.limit_id, row.window_start) for row in await connection.execute(returning, rows)}
        for key in sorted(made):
            spent = await self._count(connection, wanted[key], key[1])
            if spent:
                await connection.execute(sa.update(budget_counter).where(_is(key)).values(spent=spent))
        query = sa.select(budget_counter).where(
            sa.tuple_(budget_counter.c.limit_id, budget_counter.c.window_start).in_(list(wanted))
        )
        ordered = query.order_by(budget_counter.c.limit_id, budget_counter.c.window_start).with_for_update()
        found = {
            (row.limit_id, row.window_start): Usage(row.spent, row.leased)
            for row in await connection.execute(ordered)
        }
        return found, made

    async def _count(self, connection: AsyncConnection, limit: Limit, start: int) -> int:
        """Return what the charges of a window come to."""
        used = _USED.get(limit.measure)
        if used is None:
            return 0
        query = sa.select(sa.func.coalesce(used, 0)).where(
            usage_event.c.organisation_id == limit.organisation_id,
            SCOPE_COLUMNS[limit.scope] == limit.scope_id,
            usage_event.c.at >= max(start, limit.since),
        )
        end = window_end(limit.window, start)
        if end is not None:
            query = query.where(usage_event.c.at < end)
        return int(await connection.scalar(query) or 0)

    async def _add(self, connection: AsyncConnection, changes: Mapping[Key, tuple[int, int]]) -> None:
        """Add to spent and leased of counters, in order."""
        statement = sa.update(budget_counter).where(
            budget_counter.c.limit_id == sa.bindparam("limit"),
            budget_counter.c.window_start == sa.bindparam("start"),
        )
        rows = [
            {"limit": limit_id, "start": start, "more_spent": spent, "more_leased": leased}
            for (limit_id, start), (spent, leased) in sorted(changes.items())
        ]
        if rows:
            values = {
                "spent": budget_counter.c.spent + sa.bindparam("more_spent"),
                "leased": budget_counter.c.leased + sa.bindparam("more_leased"),
            }
            await connection.execute(statement.values(values), rows)

    def _guard(self, limit: Limit, more: int) -> sa.ColumnElement[bool]:
        """Return the condition under which `more` may be set aside."""
        return budget_counter.c.spent + budget_counter.c.leased + more <= limit.amount

    async def _set_aside(self, connection: AsyncConnection, limit: Limit, key: Key, more: int) -> bool:
        """Set `more` aside of a window. Tells whether there was so much."""
        if more == 0:
            return True
        statement = (
            sa.update(budget_counter)
            .where(
                budget_counter.c.limit_id == key[0],
                budget_counter.c.window_start == key[1],
                self._guard(limit, more),
            )
            .values(leased=budget_counter.c.leased + more)
            .returning(budget_counter.c.leased)
        )
        return (await connection.execute(statement)).scalar_one_or_none() is not None

    async def _end(self, connection: AsyncConnection, rows: Collection[Any]) -> None:
        """Close slices, whose rows are locked, and free what is left of them."""
        if not rows:
            return
        ended = sa.update(budget_slice).where(budget_slice.c.id.in_([row.id for row in rows]))
        await connection.execute(ended.values(state="closed"))
        freed: dict[Key, int] = {}
        for row in rows:
            key = row.limit_id, row.window_start
            freed[key] = freed.get(key, 0) + max(0, row.granted - row.spent)
        await self._add(connection, {key: (0, -amount) for key, amount in freed.items()})

    async def _lock_slices(self, connection: AsyncConnection, slice_ids: Iterable[str]) -> dict[str, Any]:
        ids = sorted(set(slice_ids))
        if not ids:
            return {}
        query = sa.select(budget_slice).where(budget_slice.c.id.in_(ids)).order_by(budget_slice.c.id)
        return {row.id: row for row in await connection.execute(query.with_for_update())}


class Limits(BudgetRecords):
    """Setting, listing and removing limits."""

    async def set_limit(self, limit: Limit, actor: str, now: int) -> Limit:
        """Add a limit, or change the one of the same terms; return it as it is then. Raises NotFoundError."""
        identity = ("organisation_id", "scope", "scope_id", "measure", "period", "hard", "managed_by")
        async with self.database.transaction() as connection:
            await self._changing(connection)
            await self._check_organisation(connection, limit.organisation_id)
            row = {**_limit_row(limit), "actor": actor, "updated_at": now}
            insert = self._insert(budget_limit).values(row)
            changed = {name: row[name] for name in ("amount", "thresholds", "actor", "updated_at")}
            upsert = insert.on_conflict_do_update(
                index_elements=[budget_limit.c[name] for name in identity], set_=changed
            )
            stored = (await connection.execute(upsert.returning(*budget_limit.c))).one()
            await self.feed.append(connection, TOPIC, limit.organisation_id)
            await keep_audit(
                connection, "set_limit", limit.organisation_id, stored.id, actor, _in_words(limit), now
            )
        return limit_of(stored)

    async def _check_organisation(self, connection: AsyncConnection, organisation_id: str) -> None:
        known = sa.select(account.c.id).where(account.c.id == wallet_of(organisation_id))
        if await connection.scalar(known) is None:
            raise NotFoundError(
                f"there is no organisation {organisation_id}", organisation_id=organisation_id
            )

    async def limit(self, limit_id: str) -> Limit | None:
        """Return a limit that was set."""
        async with self.database.reading() as connection:
            query = sa.select(budget_limit).where(budget_limit.c.id == limit_id)
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else limit_of(row)

    async def delete_limit(self, limit: Limit, actor: str, now: int) -> None:
        """Remove a limit and what it counted."""
        async with self.database.transaction() as connection:
            await self._changing(connection)
            await connection.execute(sa.delete(budget_limit).where(budget_limit.c.id == limit.id))
            await connection.execute(sa.delete(budget_slice).where(budget_slice.c.limit_id == limit.id))
            await connection.execute(sa.delete(budget_counter).where(budget_counter.c.limit_id == limit.id))
            await self.feed.append(connection, TOPIC, limit.organisation_id)
            await keep_audit(
                connection, "delete_limit", limit.organisation_id, limit.id, actor, _in_words(limit), now
            )

    async def limits(
        self, organisation_id: str, after: str, count: int, now: int
    ) -> list[tuple[Limit, Usage]]:
        """Return up to `count` limits after the id `after` with what is used of their present windows."""
        async with self.database.transaction() as connection:
            query = sa.select(budget_limit).where(
                budget_limit.c.organisation_id == organisation_id, budget_limit.c.id > after
            )
            rows = await connection.execute(query.order_by(budget_limit.c.id).limit(count))
            found = [limit_of(row) for row in rows]
            from_plan = (await self._plan_limits(connection, [organisation_id]))[organisation_id]
            found += [limit for limit in from_plan if limit.id > after]
            page = sorted(found, key=lambda limit: limit.id)[:count]
            keys = {(limit.id, window_start(limit.window, now)): limit for limit in page}
            counters = (await self._counters(connection, keys))[0] if keys else {}
        return [(limit, counters[key]) for key, limit in keys.items()]


def _in_words(limit: Limit) -> str:
    kind = "hard" if limit.hard else "soft"
    window = f" per {limit.window}" if limit.window else ""
    return f"{kind}: {limit.scope} {limit.scope_id}: {limit.describe()}{window}"


def stored_plan(row: Any) -> Plan:
    """Return a plan of an administrator."""
    return plan_from_json(row.name, row.content, row.revision)


def limit_of(row: Any) -> Limit:
    """Return a stored limit."""
    return Limit(
        id=row.id,
        organisation_id=row.organisation_id,
        scope=row.scope,
        scope_id=row.scope_id,
        measure=row.measure,
        window=row.period,
        amount=row.amount,
        hard=row.hard,
        thresholds=tuple(row.thresholds),
        managed_by=row.managed_by,
        since=row.since,
    )


def _limit_row(limit: Limit) -> dict[str, Any]:
    return {
        "id": limit.id,
        "organisation_id": limit.organisation_id,
        "scope": limit.scope,
        "scope_id": limit.scope_id,
        "measure": limit.measure,
        "period": limit.window,
        "amount": limit.amount,
        "hard": limit.hard,
        "thresholds": list(limit.thresholds),
        "managed_by": limit.managed_by,
        "since": limit.since,
    }


def _counter_row(limit: Limit, start: int) -> dict[str, Any]:
    return {
        "limit_id": limit.id,
        "window_start": start,
        "spent": 0,
        "leased": 0,
        "window_end": window_end(limit.window, start),
    }


def _is(key: Key) -> sa.ColumnElement[bool]:
    return sa.and_(budget_counter.c.limit_id == key[0], budget_counter.c.window_start == key[1])
