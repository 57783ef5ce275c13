"""Plans that administrators wrote, who is on which, and the allowances of each month."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from services.billing.domain.errors import NotFoundError, PreconditionFailedError
from services.billing.domain.limit import Limit
from services.billing.domain.plan import FILE, SHIPPED, Plan, month_of, plan_to_json
from services.billing.domain.usage import moment
from services.billing.store.auditing import keep_audit
from services.billing.store.budget_tables import (
    budget_limit,
    organisation_plan,
    plan,
    plan_allowance,
    plan_assignment,
)
from services.billing.store.limits import EVERYONE, TOPIC, Assigned, Limits, limit_of
from services.billing.store.tables import account
from services.common.ids import new_id

# Organisations whose allowance is looked at in one go.
BATCH = 200


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who was put on which plan."""

    id: str
    organisation_id: str
    plan: str
    actor: str
    note: str
    at: int


@dataclass(frozen=True, slots=True)
class Due:
    """Credits that a plan gives for a month, decided and not yet known to be granted."""

    organisation_id: str
    period: str
    amount: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What applies to an organisation."""

    organisation_id: str
    plan: Plan | None
    limits: Sequence[Limit]


class Plans(Limits):
    """Plans, assignments, allowances."""

    async def announce_all(self) -> None:
        """Tell followers to read every budget again: plans in files may be others than before."""
        async with self.database.transaction() as connection:
            await self.feed.append(connection, TOPIC, EVERYONE)

    async def all_plans(self) -> dict[str, Plan]:
        """Return all plans by name."""
        async with self.database.reading() as connection:
            return await self.plans(connection)

    async def set_plan(self, wanted: Plan, actor: str, now: int) -> Plan:
        """Store a plan. Raises PreconditionFailedError."""
        self._check_editable(wanted.name)
        content = plan_to_json(wanted)
        async with self.database.transaction() as connection:
            await self._changing(connection)
            known = (await self.plans(connection)).get(wanted.name)
            if known is None or plan_to_json(known) != content:
                row = {
                    "name": wanted.name,
                    "content": content,
                    "revision": new_id("rev"),
                    "actor": actor,
                    "updated_at": now,
                }
                insert = self._insert(plan).values(row)
                upsert = insert.on_conflict_do_update(index_elements=[plan.c.name], set_=row)
                await connection.execute(upsert)
                await self.feed.append(connection, TOPIC, EVERYONE)
                await keep_audit(connection, "set_plan", "", wanted.name, actor, content, now)
            return (await self.plans(connection))[wanted.name]

    def _check_editable(self, name: str) -> None:
        known = self.plan_book.plans.get(name)
        if known is not None and known.managed_by == FILE:
            raise PreconditionFailedError(
                f"the plan {name!r} is managed by the file omnihub.toml; change it there", managed_by=FILE
            )

    async def delete_plan(self, name: str, actor: str, now: int) -> None:
        """Forget what administrators wrote of a plan. Raises PreconditionFailedError."""
        self._check_editable(name)
        shipped = self.plan_book.plans.get(name)
        async with self.database.transaction() as connection:
            await self._changing(connection)
            used = sa.select(organisation_plan.c.organisation_id).where(organisation_plan.c.plan == name)
            on_it = await connection.scalar(used.limit(1))
            if on_it is not None and (shipped is None or shipped.managed_by != SHIPPED):
                raise PreconditionFailedError(
                    f"organisations are on the plan {name!r}, such as {on_it}; put them on another first"
                )
            await connection.execute(sa.delete(plan).where(plan.c.name == name))
            await self.feed.append(connection, TOPIC, EVERYONE)
            await keep_audit(connection, "delete_plan", "", name, actor, "", now)

    async def assign(self, organisation_id: str, name: str, actor: str, note: str, now: int) -> Assignment:
        """Put an organisation on a plan. Raises NotFoundError."""
        async with self.database.transaction() as connection:
            await self._changing(connection)
            await self._check_organisation(connection, organisation_id)
            if name and name not in await self.plans(connection):
                raise NotFoundError(f"there is no plan {name!r}", plan=name[:80])
            latest = _assignments(organisation_id).limit(1)
            before = (await connection.execute(latest)).one_or_none()
            if before is not None and before.plan == name:
                return _assignment(before)
            made = Assignment(new_id("asg"), organisation_id, name, actor, note, now)
            await connection.execute(sa.insert(plan_assignment).values(_assignment_row(made)))
            row = {"organisation_id": organisation_id, "plan": name, "assignment_id": made.id}
            insert = self._insert(organisation_plan).values(row)
            await connection.execute(
                insert.on_conflict_do_update(index_elements=[organisation_plan.c.organisation_id], set_=row)
            )
            await self.feed.append(connection, TOPIC, organisation_id)
            await keep_audit(connection, "assign_plan", organisation_id, name, actor, note, now)
        return made

    async def assignments(self, organisation_id: str, before: str, count: int) -> list[Assignment]:
        """Return up to `count` assignments before the id `before`, newest first."""
        query = _assignments(organisation_id)
        if before:
            query = query.where(plan_assignment.c.id < before)
        async with self.database.reading() as connection:
            return [_assignment(row) for row in await connection.execute(query.limit(count))]

    async def plan_of(self, organisation_id: str) -> Plan | None:
        """Return the plan of an organisation."""
        async with self.database.reading() as connection:
            return (await self.assigned(connection, [organisation_id]))[organisation_id].plan

    async def budgets(
        self, organisation_ids: Sequence[str], after: str, count: int
    ) -> tuple[list[Budget], str]:
        """Return what applies to those organisations, or to `count` with anything of their own after an id.

        The second value is where the next page starts; empty on the last one.
        """
        async with self.database.reading() as connection:
            ids = list(organisation_ids)
            if not ids:
                own = sa.union(
                    sa.select(budget_limit.c.organisation_id), sa.select(organisation_plan.c.organisation_id)
                ).subquery()
                page = sa.select(own.c.organisation_id).where(own.c.organisation_id > after)
                ids = list(await connection.scalars(page.order_by(own.c.organisation_id).limit(count)))
            assigned = await self.assigned(connection, ids)
            query = sa.select(budget_limit).where(
                budget_limit.c.organisation_id.in_(ids), budget_limit.c.hard
            )
            limits: dict[str, list[Limit]] = {organisation_id: [] for organisation_id in ids}
            for row in await connection.execute(query):
                limits[row.organisation_id].append(limit_of(row))
        budgets = [_budget(each, assigned[each], limits[each]) for each in ids]
        more = not organisation_ids and len(ids) == count
        return budgets, ids[-1] if more else ""

    async def default_budget(self) -> Budget:
        """Return what applies to organisations with nothing of their own; the ids end in `:`."""
        async with self.database.reading() as connection:
            assigned = (await self.assigned(connection, [""]))[""]
        return _budget("", assigned, [])

    async def due(self, now: int) -> list[Due]:
        """Decide what organisations get for this month, and return what is not known to be granted."""
        month_start, month_end = month_of(now)
        async with self.database.reading() as connection:
            wallets = sa.select(account.c.organisation_id).where(account.c.kind == "wallet")
            ids = list(await connection.scalars(wallets))
            assigned: dict[str, Assigned] = {}
            for first in range(0, len(ids), BATCH):
                assigned |= await self.assigned(connection, ids[first : first + BATCH])
        with_allowance = {
            organisation_id: each.plan
            for organisation_id, each in assigned.items()
            if each.plan is not None and each.plan.allowance
        }
        async with self.database.transaction() as connection:
            sums = await self._decided(connection, month_start)
            rows = [
                _allowance_row(organisation_id, found, sums.get(organisation_id, 0), month_start, month_end)
                for organisation_id, found in sorted(with_allowance.items())
                if found.allowance > sums.get(organisation_id, 0)
            ]
            if rows:
                await connection.execute(self._insert(plan_allowance).on_conflict_do_nothing(), rows)
            waiting = (
                sa.select(plan_allowance).where(~plan_allowance.c.granted).order_by(plan_allowance.c.period)
            )
            return [
                Due(row.organisation_id, row.period, row.amount, row.expires_at)
                for row in await connection.execute(waiting)
            ]

    async def _decided(self, connection: Any, month_start: int) -> dict[str, int]:
        total = sa.func.sum(plan_allowance.c.amount)
        query = sa.select(plan_allowance.c.organisation_id, total.label("total"))
        rows = await connection.execute(
            query.where(plan_allowance.c.month_start == month_start).group_by(
                plan_allowance.c.organisation_id
            )
        )
        return {row.organisation_id: int(row.total) for row in rows}

    async def granted(self, due: Due) -> None:
        """Note that an allowance has been granted."""
        update = sa.update(plan_allowance).where(
            plan_allowance.c.organisation_id == due.organisation_id, plan_allowance.c.period == due.period
        )
        async with self.database.transaction() as connection:
            await connection.execute(update.values(granted=True))


def _budget(organisation_id: str, assigned: Assigned, limits: Sequence[Limit]) -> Budget:
    found = assigned.plan
    own = [] if found is None else found.limits_of(organisation_id, assigned.assignment_id)
    return Budget(organisation_id, found, [*limits, *(limit for limit in own if limit.hard)])


def _assignments(organisation_id: str) -> sa.Select[Any]:
    query = sa.select(plan_assignment).where(plan_assignment.c.organisation_id == organisation_id)
    return query.order_by(plan_assignment.c.id.desc())


def _assignment(row: Any) -> Assignment:
    return Assignment(row.id, row.organisation_id, row.plan, row.actor, row.note, row.at)


def _assignment_row(made: Assignment) -> dict[str, Any]:
    return {
        "id": made.id,
        "organisation_id": made.organisation_id,
        "plan": made.plan,
        "actor": made.actor,
        "note": made.note,
        "at": made.at,
    }


def _allowance_row(
    organisation_id: str, found: Plan, decided: int, month_start: int, month_end: int
) -> dict[str, Any]:
    month = moment(month_start).strftime("%Y-%m")
    return {
        "organisation_id": organisation_id,
        # A dearer plan within the month adds the difference, under a name of its own.
        "period": f"{month}:{found.name}" if decided else month,
        "month_start": month_start,
        "plan": found.name,
        "amount": found.allowance - decided,
        "expires_at": month_end,
        "granted": False,
    }
