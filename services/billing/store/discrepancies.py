"""Differences that checks have found, kept until a later check does not find them again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from services.billing.domain.difference import Difference, Report
from services.billing.domain.plan import PlanBook
from services.billing.store.accounts import Accounts
from services.billing.store.checks import check_ledger
from services.billing.store.tables import discrepancy
from services.common.ids import new_id

LONGEST_SUBJECT = 256


class Discrepancies(Accounts):
    """Checking, and remembering what was found."""

    plan_book: PlanBook | None = None
    """The plans of files, so that their counters are checked, too; set by the wiring."""

    async def check(self, now: int) -> Report:
        """Check the whole ledger and keep what differs; the check itself changes nothing."""
        report = await asyncio.to_thread(check_ledger, self.database, self.plan_book)
        await self.keep_differences(report.differences, now)
        return report

    async def keep_differences(self, differences: Iterable[Difference], now: int) -> None:
        """Keep new differences, mark known ones as seen and those no longer found as resolved."""
        found = {(d.rule, d.subject[:LONGEST_SUBJECT], d.expected, d.found) for d in differences}
        unresolved = sa.select(discrepancy).where(discrepancy.c.resolved_at.is_(None))
        async with self.database.transaction() as connection:
            known = {
                (row.rule, row.subject, row.expected, row.found): row.id
                for row in await connection.execute(unresolved.with_for_update())
            }
            for key, known_id in known.items():
                values = {"last_seen_at": now} if key in found else {"resolved_at": now}
                change = sa.update(discrepancy).where(discrepancy.c.id == known_id)
                await connection.execute(change.values(values))
            rows = [
                {
                    "id": new_id("diff"),
                    "rule": rule,
                    "subject": subject,
                    "expected": expected,
                    "found": actual,
                    "first_seen_at": now,
                    "last_seen_at": now,
                    "resolved_at": None,
                }
                for rule, subject, expected, actual in sorted(found - set(known))
            ]
            if rows:
                await connection.execute(sa.insert(discrepancy), rows)

    async def discrepancies(self, after: str | None, limit: int, *, resolved: bool) -> Sequence[Any]:
        """Return kept differences, the newest first, those after the id `after`."""
        # Ids grow with time.
        query = sa.select(discrepancy).order_by(discrepancy.c.id.desc()).limit(limit)
        if not resolved:
            query = query.where(discrepancy.c.resolved_at.is_(None))
        if after is not None:
            query = query.where(discrepancy.c.id < after)
        async with self.database.reading() as connection:
            return (await connection.execute(query)).all()
