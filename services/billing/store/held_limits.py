"""What holds draw of limits: slices in the name of the hold, made and ended in the hold's own transactions.

Locks as everywhere: slices, then counters, each sorted; wallets come last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.limit import Limit, refusal, subjects_of, units_of
from services.billing.store.budget_tables import budget_limit, budget_slice
from services.billing.store.limits import BudgetRecords, Key, limit_of
from services.common.ids import new_id
from services.credits.windows import window_start

_LIMITS = sa.select(budget_limit).where(
    budget_limit.c.organisation_id.in_(sa.bindparam("organisations", expanding=True)),
    budget_limit.c.scope_id.in_(sa.bindparam("scope_ids", expanding=True)),
)
_HELD = (
    sa.select(budget_slice)
    .where(budget_slice.c.holder.in_(sa.bindparam("holders", expanding=True)), budget_slice.c.state == "open")
    .order_by(budget_slice.c.id)
    .with_for_update()
)

Who = tuple[str, ...]
"""Whose usage a charge is, as `who_of` says."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Who draws on limits, for what, and when it was admitted."""

    who: Who
    tokens: int
    at: int


class HeldLimits(BudgetRecords):
    """Limits of holds."""

    async def _limits_of(
        self, connection: AsyncConnection, everyone: Iterable[Who]
    ) -> dict[Who, list[Limit]]:
        """Return the limits that apply to charges, by whose they are."""
        subjects = {who: subjects_of(who) for who in everyone}
        organisations = {who[0] for who in subjects}
        scope_ids = {scope_id for each in subjects.values() for _, scope_id in each}
        found = await self._plan_limits(connection, organisations)
        asked = {"organisations": list(organisations), "scope_ids": list(scope_ids)}
        for row in await connection.execute(_LIMITS, asked):
            found[row.organisation_id].append(limit_of(row))
        by_subject: dict[tuple[str, tuple[str, str]], list[Limit]] = {}
        for organisation_id, limits in found.items():
            for limit in limits:
                by_subject.setdefault((organisation_id, limit.subject), []).append(limit)
        return {
            who: [limit for subject in each for limit in by_subject.get((who[0], subject), ())]
            for who, each in subjects.items()
        }

    async def draw(
        self, connection: AsyncConnection, hold_id: str, drawing: Drawing, nano: int, expires_at: int
    ) -> None:
        """Set aside what a new hold may use of every limit, or nothing and raise the refusal."""
        await self._booking(connection)
        limits = (await self._limits_of(connection, [drawing.who]))[drawing.who]
        needs: dict[Key, tuple[Limit, int]] = {}
        uses = units_of(nano, drawing.tokens)
        for limit in limits:
            units = uses.get(limit.measure, 0)
            if limit.hard and units:
                needs[limit.id, window_start(limit.window, drawing.at)] = limit, units
        if not needs:
            return
        counters, _ = await self._counters(connection, {key: limit for key, (limit, _) in needs.items()})
        for key, (limit, units) in needs.items():
            usage = counters[key]
            if usage.spent + usage.leased + units > limit.amount:
                raise refusal(limit, units, units, usage.spent, drawing.at)
        for key, (limit, units) in sorted(needs.items()):
            if not await self._set_aside(connection, limit, key, units):
                raise RuntimeError(f"the counter of {key} has changed while it was locked")
        rows = [
            {
                "id": new_id("slice"),
                "limit_id": limit_id,
                "window_start": start,
                "holder": hold_id,
                "granted": units,
                "spent": 0,
                "state": "open",
                "expires_at": expires_at,
            }
            for (limit_id, start), (_, units) in needs.items()
        ]
        await connection.execute(sa.insert(budget_slice), rows)

    async def prolong(
        self, connection: AsyncConnection, hold_id: str, organisation_id: str, more: int, expires_at: int
    ) -> None:
        """Keep what a hold has drawn until then, and draw for `more` nano-credits. Raises the refusal."""
        held = await self._held(connection, [hold_id])
        if not held:
            return
        by_limit = {row.limit_id: row for row in held}
        query = sa.select(budget_limit).where(budget_limit.c.id.in_(list(by_limit)))
        limits = [limit_of(row) for row in await connection.execute(query)]
        limits += (await self._plan_limits(connection, [organisation_id]))[organisation_id]
        for limit in sorted(limits, key=lambda each: each.id):
            row = by_limit.get(limit.id)
            if row is None or limit.measure != "credits" or more <= 0:
                continue
            key = row.limit_id, row.window_start
            if not await self._set_aside(connection, limit, key, more):
                usage = (await self._counters(connection, {key: limit}))[0][key]
                raise refusal(limit, more, more, usage.spent, row.window_start)
            larger = sa.update(budget_slice).where(budget_slice.c.id == row.id)
            await connection.execute(larger.values(granted=row.granted + more))
        later = sa.update(budget_slice).where(budget_slice.c.id.in_([row.id for row in held]))
        await connection.execute(later.values(expires_at=expires_at))

    async def let_go(self, connection: AsyncConnection, hold_ids: Collection[str]) -> None:
        """Free what holds have drawn and not used: they have ended."""
        await self._end(connection, await self._held(connection, hold_ids))

    async def _lock_drawn(
        self, connection: AsyncConnection, slice_ids: Iterable[str], hold_ids: Collection[str]
    ) -> dict[str, Any]:
        """Lock and return these slices, and what these holds have drawn."""
        if not hold_ids:
            return await self._lock_slices(connection, slice_ids)
        of_holds = sa.and_(budget_slice.c.holder.in_(list(hold_ids)), budget_slice.c.state == "open")
        # All of them by one statement, for they are locked in one order.
        either = sa.or_(budget_slice.c.id.in_(sorted(set(slice_ids))), of_holds)
        query = sa.select(budget_slice).where(either).order_by(budget_slice.c.id).with_for_update()
        return {row.id: row for row in await connection.execute(query)}

    async def _held(self, connection: AsyncConnection, hold_ids: Collection[str]) -> list[Any]:
        """Lock and return what holds have drawn."""
        if not hold_ids:
            return []
        return list(await connection.execute(_HELD, {"holders": list(hold_ids)}))
