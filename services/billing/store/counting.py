"""Charges into the counters of limits, in the transaction that books them, and the alerts this raises."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.ledger import at_of
from services.billing.domain.limit import Limit, crossed, units_of, who_of
from services.billing.store.budget_tables import budget_alert, budget_slice
from services.billing.store.held_limits import HeldLimits
from services.billing.store.limits import Key
from services.common.ids import new_id
from services.common.telemetry import meter
from services.credits.windows import window_start

_alerts = meter.create_counter("omnihub.budget.alerts", unit="{alert}")
_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slice:
    """An open slice that charges name."""

    id: str
    key: Key
    spent: int
    granted: int
    touched: bool = False

    def spend(self, units: int) -> int:
        """Count units, and return how many of them were set aside for it."""
        set_aside = min(units, self.granted - self.spent)
        self.spent += units
        # More than was set aside: then that much was set aside, after the fact.
        self.granted = max(self.granted, self.spent)
        self.touched = True
        return set_aside


@dataclass(frozen=True, slots=True)
class Alert:
    """A threshold that was passed."""

    id: str
    limit: Limit
    window_start: int
    percent: int
    spent: int
    at: int


class Booking(HeldLimits):
    """Charges into counters, in the transaction that books them."""

    async def book(self, connection: AsyncConnection, charges: Sequence[Charge], now: int) -> list[Alert]:
        """Count charges that have just been stored as usage events. Return the alerts that raises."""
        await self._booking(connection)
        limits = await self._limits_of(connection, set(map(who_of, charges)))
        if not any(limits.values()):
            return []
        holds = {charge.hold_id for charge in charges if charge.hold_id}
        rows = await self._lock_drawn(
            connection, (each for charge in charges for each in charge.slice_ids), holds
        )
        held: dict[str, list[str]] = {}
        for row in rows.values():
            if row.holder in holds:
                held.setdefault(row.holder, []).append(row.id)
        slices = {
            row.id: _Slice(row.id, (row.limit_id, row.window_start), row.spent, row.granted)
            for row in rows.values()
            if row.state == "open"
        }
        used: dict[Key, int] = {}
        by_key: dict[Key, Limit] = {}
        freed: dict[Key, int] = {}
        for charge in charges:
            at = at_of(charge, now)
            # A kept answer that is given again is a request, and uses nothing else.
            tokens = 0 if charge.cached else charge.usage.input_total + charge.usage.output_total
            uses = units_of(charge.amount_nano_credits, tokens)
            own_slices = (*charge.slice_ids, *held.get(charge.hold_id, ())) if held else charge.slice_ids
            drawn = {slices[each].key[0]: slices[each] for each in own_slices if each in slices}
            for limit in limits[who_of(charge)]:
                units = uses.get(limit.measure)
                if not units or at < limit.since:
                    continue
                key = limit.id, window_start(limit.window, at)
                used[key], by_key[key] = used.get(key, 0) + units, limit
                if (one := drawn.get(limit.id)) is not None:
                    freed[one.key] = freed.get(one.key, 0) + one.spend(units)
        spent = [one for one in slices.values() if one.touched]
        alerts = await self._write(connection, by_key, used, freed, spent, now)
        # The first charge of a hold ends it.
        await self.let_go(connection, held)
        return alerts

    async def _write(
        self,
        connection: AsyncConnection,
        by_key: Mapping[Key, Limit],
        used: Mapping[Key, int],
        freed: Mapping[Key, int],
        spent: Sequence[_Slice],
        now: int,
    ) -> list[Alert]:
        if spent:
            statement = sa.update(budget_slice).where(budget_slice.c.id == sa.bindparam("slice"))
            await connection.execute(
                statement.values(spent=sa.bindparam("used"), granted=sa.bindparam("total")),
                [{"slice": one.id, "used": one.spent, "total": one.granted} for one in spent],
            )
        if not by_key:
            return []
        counters, made = await self._counters(connection, by_key)
        changes = {
            key: (0 if key in made else used.get(key, 0), -freed.get(key, 0)) for key in {*used, *freed}
        }
        await self._add(connection, changes)
        alerts = []
        for key, limit in by_key.items():
            after = counters[key].spent + (0 if key in made else used[key])
            for percent in crossed(limit, after - used[key], after):
                alerts.append(Alert(new_id("alert"), limit, key[1], percent, after, now))
        return await self._raise(connection, alerts)

    async def _raise(self, connection: AsyncConnection, alerts: Sequence[Alert]) -> list[Alert]:
        """Store alerts, and return those that are new in their window."""
        if not alerts:
            return []
        insert = self._insert(budget_alert).on_conflict_do_nothing().returning(budget_alert.c.id)
        new = set((await connection.scalars(insert, [_alert_row(alert) for alert in alerts])).all())
        return [alert for alert in alerts if alert.id in new]

    async def alerts(self, organisation_id: str, before: str, count: int) -> list[Alert]:
        """Return up to `count` alerts before the id `before`, newest first."""
        query = sa.select(budget_alert).where(budget_alert.c.organisation_id == organisation_id)
        if before:
            query = query.where(budget_alert.c.id < before)
        async with self.database.reading() as connection:
            rows = await connection.execute(query.order_by(budget_alert.c.id.desc()).limit(count))
            return [
                Alert(row.id, _limit_of_alert(row), row.window_start, row.percent, row.spent, row.at)
                for row in rows
            ]


def announce(alerts: Iterable[Alert]) -> None:
    """Say in log and metrics what `book` has raised. Call it once the transaction is committed."""
    for alert in alerts:
        limit = alert.limit
        _alerts.add(1, {"omnihub.scope": limit.scope, "omnihub.measure": limit.measure})
        _logger.warning(
            "budget_alert %s %s %s %s",
            limit.organisation_id,
            limit.id,
            alert.percent,
            alert.spent,
            extra={
                "organisation_id": limit.organisation_id,
                "limit_id": limit.id,
                "scope": limit.scope,
                "scope_id": limit.scope_id,
                "percent": alert.percent,
            },
        )


def _alert_row(alert: Alert) -> dict[str, Any]:
    limit = alert.limit
    return {
        "id": alert.id,
        "limit_id": limit.id,
        "window_start": alert.window_start,
        "percent": alert.percent,
        "organisation_id": limit.organisation_id,
        "scope": limit.scope,
        "scope_id": limit.scope_id,
        "measure": limit.measure,
        "period": limit.window,
        "amount": limit.amount,
        "hard": limit.hard,
        "spent": alert.spent,
        "at": alert.at,
    }


def _limit_of_alert(row: Any) -> Limit:
    return Limit(
        id=row.limit_id,
        organisation_id=row.organisation_id,
        scope=row.scope,
        scope_id=row.scope_id,
        measure=row.measure,
        window=row.period,
        amount=row.amount,
        hard=row.hard,
    )
