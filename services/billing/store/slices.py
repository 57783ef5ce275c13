"""Slices: what processes have set aside of limits. The statement itself guards spent + leased <= amount.

A slice is lowered to what was spent of it, never freed as a whole, so it can be returned before its
charges are booked: what they have not used yet stays leased. Locks: slices, then counters, each sorted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.errors import AlreadyEndedError, NotFoundError
from services.billing.domain.limit import Limit, grown_total, refusal
from services.billing.store.budget_tables import budget_counter, budget_limit, budget_slice
from services.billing.store.limits import BudgetRecords, Key, Usage, limit_of
from services.credits.windows import window_start

_logger = logging.getLogger(__name__)
LISTED = 1000
# Numbers of the past stay for a while, for charges that come late and for whoever lists them.
FORGET_AFTER = 86_400_000_000

# Asked again and again, so made once; see Database.look.
_OPEN_EXPIRED = sa.select(budget_slice.c.id).where(
    budget_slice.c.state == "open", budget_slice.c.expires_at <= sa.bindparam("now")
)
_EXPIRED = _OPEN_EXPIRED.order_by(budget_slice.c.expires_at).limit(LISTED)
_EXPIRED_SLOTS = (
    _OPEN_EXPIRED.join(budget_limit, budget_limit.c.id == budget_slice.c.limit_id, isouter=True)
    .where(
        sa.or_(budget_limit.c.measure == "concurrency", budget_slice.c.limit_id.like("plan:%:concurrency:%"))
    )
    .limit(LISTED)
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A slice to be raised; see WantedSlice of the contract."""

    id: str
    limit_id: str
    need: int
    minimum_total: int
    spent_total: int


@dataclass(frozen=True, slots=True)
class Granted:
    """A slice, and what is left for others."""

    id: str
    total: int
    available: int


def _so_far(wanted: Wanted, row: Any) -> tuple[int, int]:
    """Return what a slice has, and what charges have used of it. Raises AlreadyEndedError."""
    if row is None:
        return 0, 0
    if row.state != "open":
        raise AlreadyEndedError(f"the slice {wanted.id} is closed; use a new id", state=row.state)
    return row.granted, row.spent


class Slices(BudgetRecords):
    """Raising, renewing, lowering and ending slices."""

    async def acquire(
        self, organisation_id: str, holder: str, wanted: Sequence[Wanted], at: int, expires_at: int
    ) -> list[Granted]:
        """Raise slices, all or none, for a request admitted at `at`.

        Raises NotFoundError, EstimateExceedsBudgetError, BudgetLimitError, InFlightBudgetExhaustedError,
        RateLimitedError, AlreadyEndedError.
        """
        async with self.database.transaction() as connection:
            limits = await self._named(connection, organisation_id, [each.limit_id for each in wanted])
            known = await self._lock_slices(connection, (each.id for each in wanted))
            keys: dict[Key, Limit] = {}
            for each in wanted:
                limit, row = limits[each.limit_id], known.get(each.id)
                start = window_start(limit.window, at) if row is None else row.window_start
                keys[limit.id, start] = limit
            counters, _ = await self._counters(connection, keys)
            by_limit = {key[0]: (key, counters[key]) for key in keys}
            answers = []
            for each in sorted(wanted, key=lambda each: each.limit_id):
                key, usage = by_limit[each.limit_id]
                granted, booked = _so_far(each, known.get(each.id))
                limit = limits[each.limit_id]
                available = limit.amount - usage.spent - usage.leased
                total = grown_total(limit, available, granted, each.minimum_total, each.need)
                if total is None or not await self._set_aside(connection, limit, key, total - granted):
                    # What its process has spent will be booked: only what is reserved can come back.
                    spent = usage.spent + max(0, min(granted, each.spent_total) - booked)
                    raise refusal(limit, each.need, each.minimum_total - granted, spent, at)
                answers.append(Granted(each.id, total, available - (total - granted)))
                await self._store(connection, each, key, holder, total, expires_at)
            self.crash.pass_by("before_slice_commit")
        self.crash.pass_by("after_slice_commit")
        return answers

    async def _named(
        self, connection: AsyncConnection, organisation_id: str, limit_ids: Sequence[str]
    ) -> Mapping[str, Limit]:
        query = sa.select(budget_limit).where(
            budget_limit.c.organisation_id == organisation_id, budget_limit.c.id.in_(limit_ids)
        )
        limits = {row.id: limit_of(row) for row in await connection.execute(query)}
        if len(limits) < len(set(limit_ids)):
            from_plan = (await self._plan_limits(connection, [organisation_id]))[organisation_id]
            limits |= {limit.id: limit for limit in from_plan}
        for limit_id in limit_ids:
            if limit_id not in limits:
                raise NotFoundError(f"there is no limit {limit_id}; read the budgets again")
        return limits

    async def _store(
        self, connection: AsyncConnection, wanted: Wanted, key: Key, holder: str, total: int, expires_at: int
    ) -> None:
        row = {
            "id": wanted.id,
            "limit_id": key[0],
            "window_start": key[1],
            "holder": holder,
            "granted": total,
            "spent": 0,
            "state": "open",
            "expires_at": expires_at,
        }
        insert = self._insert(budget_slice).values(row)
        again = {"granted": total, "expires_at": expires_at}
        await connection.execute(insert.on_conflict_do_update(index_elements=[budget_slice.c.id], set_=again))

    async def renew(self, slice_ids: Sequence[str], expires_at: int) -> list[str]:
        """Postpone the expiry of open slices and return which are open."""
        renewed: list[str] = []
        for first in range(0, len(slice_ids), LISTED):
            async with self.database.transaction() as connection:
                rows = await self._lock_slices(connection, slice_ids[first : first + LISTED])
                ids = [row.id for row in rows.values() if row.state == "open"]
                update = sa.update(budget_slice).where(budget_slice.c.id.in_(ids))
                await connection.execute(update.values(expires_at=expires_at))
            renewed += ids
        return renewed

    async def lower(self, totals: Mapping[str, int]) -> None:
        """Lower open slices to these totals, but not below what charges have used."""
        async with self.database.transaction() as connection:
            rows = await self._lock_slices(connection, totals)
            keep = {row.id: max(row.spent, totals[row.id]) for row in rows.values() if row.state == "open"}
            lower = {slice_id: total for slice_id, total in keep.items() if total < rows[slice_id].granted}
            freed: dict[Key, int] = {}
            for slice_id, total in lower.items():
                row = rows[slice_id]
                key = row.limit_id, row.window_start
                freed[key] = freed.get(key, 0) + row.granted - total
            await self._add(connection, {key: (0, -amount) for key, amount in freed.items()})
            for slice_id, total in sorted(lower.items()):
                update = sa.update(budget_slice).where(budget_slice.c.id == slice_id)
                await connection.execute(update.values(granted=total))

    async def expired(self, now: int) -> list[str]:
        """Return open slices past their expiry, the longest expired first."""
        return [slice_id for (slice_id,) in await self.database.look(_EXPIRED, now=now)]

    async def close(self, slice_ids: Sequence[str], expired_before: int) -> list[str]:
        """End slices that expired before a moment, free the rest of them, and return which."""
        async with self.database.transaction() as connection:
            rows = await self._lock_slices(connection, slice_ids)
            due = [row for row in rows.values() if row.state == "open" and row.expires_at <= expired_before]
            await self._end(connection, due)
        return [row.id for row in due]

    async def free_slots(self, now: int) -> None:
        """End expired slices of concurrency: nothing is charged to them, so there is nothing to wait for."""
        if due := [slice_id for (slice_id,) in await self.database.look(_EXPIRED_SLOTS, now=now)]:
            await self.close(due, now)

    async def close_abandoned(self, expired_before: int) -> None:
        """End slices that expired long ago, without their journal."""
        due = await self.expired(expired_before)
        if due:
            for slice_id in await self.close(due, expired_before):
                _logger.warning("slice_abandoned %s", slice_id)

    async def forget(self, now: int) -> None:
        """Remove slices that ended and counters of windows that are over, a day later."""
        before = now - FORGET_AFTER
        over = budget_counter.c.window_end <= before
        ended = sa.and_(budget_slice.c.state == "closed", budget_slice.c.expires_at <= before)
        async with self.database.transaction() as connection:
            await connection.execute(sa.delete(budget_slice).where(ended))
            still = sa.select(budget_slice.c.id).where(
                budget_slice.c.limit_id == budget_counter.c.limit_id,
                budget_slice.c.window_start == budget_counter.c.window_start,
                budget_slice.c.state == "open",
            )
            await connection.execute(sa.delete(budget_counter).where(over, ~still.exists()))

    async def usage(self, limit: Limit, at: int) -> Usage:
        """Return what is used and set aside of the window that holds a moment."""
        key = limit.id, window_start(limit.window, at)
        async with self.database.transaction() as connection:
            return (await self._counters(connection, {key: limit}))[0][key]
