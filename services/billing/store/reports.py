"""Reading usage events and sums for reports, and keeping what does not add up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from services.billing.domain.attempts import ChargedAttempts
from services.billing.domain.usage import Period
from services.billing.store.prices import PriceStore
from services.billing.store.rollup import EVERYONE, TOTAL, edges, whole
from services.billing.store.tables import difference, usage_event, usage_rollup
from services.billing.store.usage import DAY, UsageSum, sums_of
from services.common.db import Database

RATING, RECONCILIATION, ATTEMPT_ONLY, CHARGE_ONLY = "rating", "reconciliation", "attempt_only", "charge_only"
KINDS = (RATING, RECONCILIATION, ATTEMPT_ONLY, CHARGE_ONLY)
# An attempt may be billed on another side of midnight than we charged it.
AROUND = 3_600_000_000
# Events that are looked at before others get a turn.
SOME = 500
LARGEST_REPORT = 1000
# More days than a report covers sensibly, and than a page of it holds.
LARGEST_DAYS = 10_000
ORGANISATION = "organisation"


@dataclass(frozen=True, slots=True)
class Difference:
    """Something two sides do not agree about; amounts as decimals."""

    kind: str
    ours: str
    theirs: str
    reason: str
    event_id: str = ""
    provider: str = ""
    model: str = ""
    day: str = ""
    found_at: int = 0
    seq: int = 0
    attempt_id: str = ""

    @property
    def id(self) -> str:
        """Return the same id for the same finding, however often it is found."""
        about = (
            self.kind, self.event_id, self.provider, self.model, self.day,
            self.ours, self.theirs, self.reason, *([self.attempt_id] if self.attempt_id else ()),
        )  # fmt: skip
        return hashlib.sha256("\n".join(about).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events: of one organisation or of EVERYONE, of a period, perhaps only some."""

    organisation_id: str
    period: Period
    state: str = ""
    cost_source: str = ""


class Reports:
    """Questions whose answers may be large."""

    def __init__(self, database: Database, prices: PriceStore) -> None:
        self.database = database
        self.prices = prices
        self._insert: Any = sqlite.insert if database.sqlite else postgresql.insert

    async def events(
        self, wanted: Wanted, after: tuple[int, str] | None, limit: int
    ) -> Sequence[sa.Row[Any]]:
        """Return up to `limit` events, oldest first, after the one at a moment with an id."""
        event = usage_event.c
        conditions = (
            [] if wanted.organisation_id == EVERYONE else [event.organisation_id == wanted.organisation_id]
        )
        if wanted.period.start is not None:
            conditions.append(event.at >= wanted.period.start)
        if wanted.period.end is not None:
            conditions.append(event.at < wanted.period.end)
        if wanted.state:
            conditions.append(event.state == wanted.state)
        if wanted.cost_source:
            conditions.append(event.cost_source == wanted.cost_source)
        if after is not None:
            conditions.append(
                sa.tuple_(event.at, event.id) > sa.tuple_(sa.literal(after[0]), sa.literal(after[1]))
            )
        query = sa.select(usage_event).where(*conditions).order_by(event.at, event.id).limit(limit)
        async with self.database.reading() as connection:
            return (await connection.execute(query)).all()

    async def usage(self, organisation_id: str, period: Period, *group_by: str) -> list[list[UsageSum]]:
        """Return sums by each of several dimensions, from one snapshot; TOTAL gives a list of one."""
        answers = []
        async with self.database.reading(snapshot=True) as connection:
            for group in group_by:
                answers.append(
                    await sums_of(
                        connection,
                        organisation_id,
                        period,
                        group,
                        limit=LARGEST_DAYS if group == DAY else LARGEST_REPORT,
                        dearest_first=group not in (TOTAL, DAY),
                    )
                )
        return answers

    async def active(self, period: Period) -> tuple[int, int]:
        """Return how many organisations and how many users used something in a period."""
        return (
            await self._count(period, TOTAL, usage_event.c.organisation_id, usage_rollup.c.organisation_id),
            await self._count(period, "user", usage_event.c.user_id, usage_rollup.c.value),
        )

    async def _count(
        self, period: Period, dimension: str, of_events: sa.Column[str], of_rollup: sa.Column[str]
    ) -> int:
        parts = []
        for start, end in edges(period.start, period.end):
            query = sa.select(of_events.label("name")).where(of_events != "")
            query = query if start is None else query.where(usage_event.c.at >= start)
            parts.append(query if end is None else query.where(usage_event.c.at < end))
        first, after, any_whole = whole(period.start, period.end)
        if any_whole:
            rollup = usage_rollup.c
            query = sa.select(of_rollup.label("name")).where(
                rollup.dimension == dimension, rollup.organisation_id != EVERYONE, of_rollup != ""
            )
            query = query if first is None else query.where(rollup.hour >= first)
            parts.append(query if after is None else query.where(rollup.hour < after))
        names = sa.union_all(*parts).subquery()
        count = sa.select(sa.func.count(names.c.name.distinct()))
        async with self.database.reading() as connection:
            return await connection.scalar(count) or 0

    async def costs_by_model(self, provider: str, start: int, end: int) -> dict[tuple[str, str], int]:
        """Return a provider's cost in nano-credits, by its own name of the model and number of the day."""
        rollup, day = usage_rollup.c, sa.literal(24, sa.BigInteger)
        number = rollup.hour.op("/")(day)
        first, after, _ = whole(start, end)
        # Names with `%` or `_` are compared again below.
        query = (
            sa.select(rollup.value, number.label("day"), sa.func.sum(rollup.cost).label("cost"))
            .where(rollup.organisation_id == EVERYONE, rollup.dimension == "model")
            .where(rollup.hour >= first, rollup.hour < after)
            .group_by(rollup.value, number)
        )
        prefix = f"{provider}/"
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return {
            (row.value.removeprefix(prefix), str(row.day)): int(row.cost)
            for row in rows
            if row.value.startswith(prefix)
        }

    async def charged_attempts(self, provider: str, start: int, end: int) -> list[ChargedAttempts]:
        """Return what charges between two moments pay for at a provider, and an hour around them."""
        event = usage_event.c
        # Of an answer of several parts the event names the last provider only.
        named = event.rating.contains(
            json.dumps({"provider": provider}, separators=(",", ":"), ensure_ascii=False)[1:-1],
            autoescape=True,
        )
        columns = (event.id, event.at, event.provider, event.model, event.day, event.cost, event.rating)
        query = sa.select(*columns).where(event.at < end + AROUND, sa.or_(event.provider == provider, named))
        query = query.order_by(event.at, event.id).limit(SOME)
        found: list[ChargedAttempts] = []
        after = start - AROUND, ""
        async with self.database.reading() as connection:
            while True:
                place = sa.tuple_(event.at, event.id) > sa.tuple_(*map(sa.literal, after))
                rows = (await connection.execute(query.where(place))).all()
                for row in rows:
                    counts = start <= row.at < end and row.provider == provider
                    found.append(_charged(row, provider, counts))
                if len(rows) < SOME:
                    return found
                after = rows[-1].at, rows[-1].id

    async def keep(self, found: Sequence[Difference], now: int) -> None:
        """Keep what does not add up. What is known already stays as it is."""
        if not found:
            return
        rows = {
            each.id: {
                "id": each.id,
                "seq": now + number,
                "kind": each.kind,
                "event_id": each.event_id,
                "provider": each.provider,
                "model": each.model,
                "day": each.day,
                "ours": each.ours,
                "theirs": each.theirs,
                "reason": each.reason,
                "found_at": now,
                "attempt_id": each.attempt_id,
            }
            for number, each in enumerate(found)
        }
        async with self.database.transaction() as connection:
            await connection.execute(
                self._insert(difference).on_conflict_do_nothing(), [rows[key] for key in sorted(rows)]
            )

    async def differences(
        self, kind: str, before: tuple[int, str] | None, limit: int
    ) -> list[tuple[str, Difference]]:
        """Return up to `limit` findings with their ids, newest first."""
        columns = difference.c
        query = sa.select(difference).order_by(columns.seq.desc(), columns.id.desc()).limit(limit)
        if kind:
            query = query.where(columns.kind == kind)
        if before is not None:
            query = query.where(
                sa.tuple_(columns.seq, columns.id) < sa.tuple_(sa.literal(before[0]), sa.literal(before[1]))
            )
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [
            (
                row.id,
                Difference(
                    row.kind, row.ours, row.theirs, row.reason, row.event_id, row.provider, row.model,
                    row.day, row.found_at, row.seq, row.attempt_id,
                ),
            )
            for row in rows
        ]  # fmt: skip


def _charged(row: Any, provider: str, counts: bool) -> ChargedAttempts:
    rating = json.loads(row.rating) if row.rating else {}
    names = [
        each["id"].replace("\0", "")
        for each in rating.get("attempts", ())
        if each.get("provider") == provider and each.get("id")
    ]
    return ChargedAttempts(row.id, row.model.removeprefix(f"{provider}/"), row.day, row.cost, names, counts)
