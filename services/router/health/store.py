"""What replicas tell each other of providers: measurements of each minute, and circuits that have opened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from services.common.db import Database
from services.router.domain.catalogue import Target
from services.router.domain.sketch import Sketch, Tally

metadata = sa.MetaData()
provider_metrics = sa.Table(
    "provider_metrics",
    metadata,
    sa.Column("minute", sa.BigInteger, primary_key=True),
    sa.Column("target", sa.String(512), primary_key=True),
    sa.Column("instance_id", sa.String(64), primary_key=True),
    sa.Column("provider", sa.String(256), nullable=False),
    sa.Column("attempts", sa.BigInteger, nullable=False),
    sa.Column("successes", sa.BigInteger, nullable=False),
    sa.Column("failures", sa.BigInteger, nullable=False),
    sa.Column("cancelled", sa.BigInteger, nullable=False),
    sa.Column("latency", sa.LargeBinary, nullable=False),
    sa.Column("first_token", sa.LargeBinary, nullable=False),
)
circuit_openings = sa.Table(
    "circuit_openings",
    metadata,
    sa.Column("name", sa.String(512), primary_key=True),
    sa.Column("instance_id", sa.String(64), primary_key=True),
    sa.Column("opened_at", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
)
_COUNTS = ("attempts", "successes", "failures", "cancelled", "latency", "first_token")
NAME_LIMIT = 512


@dataclass(frozen=True, slots=True)
class Minute:
    """What one or all processes have measured of a target in one minute."""

    minute: int
    """Since 1970."""
    target: Target
    instance_id: str
    tally: Tally


@dataclass(frozen=True, slots=True)
class Opening:
    """A circuit that has opened in a process."""

    name: str
    instance_id: str
    opened_at_ms: int
    reason: str


class HealthStore:
    """The tables of health."""

    def __init__(self, database: Database) -> None:
        self._database = database
        make = sqlite.insert if database.sqlite else postgresql.insert
        metrics: Any = make(provider_metrics)
        self._write_minute = metrics.on_conflict_do_update(
            index_elements=["minute", "target", "instance_id"],
            set_={name: metrics.excluded[name] for name in _COUNTS},
        )
        openings: Any = make(circuit_openings)
        self._write_opening = openings.on_conflict_do_update(
            index_elements=["name", "instance_id"],
            set_={name: openings.excluded[name] for name in ("opened_at", "reason")},
        )

    async def write(self, minutes: Iterable[Minute], openings: Iterable[Opening]) -> None:
        """Write what a process has measured since the last time; a minute replaces what was known of it."""
        rows = [_row(each) for each in minutes if _storable(each.target.name)]
        opened = [
            {
                "name": each.name,
                "instance_id": each.instance_id,
                "opened_at": each.opened_at_ms,
                "reason": each.reason,
            }
            for each in openings
            if _storable(each.name)
        ]
        if not rows and not opened:
            return
        async with self._database.transaction() as connection:
            if rows:
                await connection.execute(self._write_minute, rows)
            if opened:
                await connection.execute(self._write_opening, opened)

    async def openings(self, since_ms: int) -> Sequence[Opening]:
        """Return the circuits that have opened since then, in any process."""
        query = sa.select(circuit_openings).where(circuit_openings.c.opened_at >= since_ms)
        rows = await self._database.look(query)
        return [Opening(row.name, row.instance_id, row.opened_at, row.reason) for row in rows]

    async def minutes(self, since_minute: int, provider: str = "") -> Sequence[Minute]:
        """Return what every process has measured since then."""
        query = sa.select(provider_metrics).where(provider_metrics.c.minute >= since_minute)
        if provider:
            query = query.where(provider_metrics.c.provider == provider)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [_minute(row) for row in rows]

    async def history(
        self,
        limit: int,
        *,
        provider: str = "",
        target: str = "",
        first: int | None = None,
        before: int | None = None,
        after: tuple[int, str] | None = None,
    ) -> Sequence[Minute]:
        """Return minutes of all processes together, newest first, at most `limit` of them.

        `after` is the minute and target that the page before ended with.
        """
        minute, name = provider_metrics.c.minute, provider_metrics.c.target
        keys = sa.select(minute, name).distinct().order_by(minute.desc(), name).limit(limit)
        if provider:
            keys = keys.where(provider_metrics.c.provider == provider)
        if target:
            keys = keys.where(name == target)
        if first is not None:
            keys = keys.where(minute >= first)
        if before is not None:
            keys = keys.where(minute < before)
        if after is not None:
            keys = keys.where(sa.or_(minute < after[0], sa.and_(minute == after[0], name > after[1])))
        page = keys.subquery()
        query = (
            sa.select(provider_metrics)
            .join(page, sa.and_(minute == page.c.minute, name == page.c.target))
            .order_by(minute.desc(), name)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        together: dict[tuple[int, str], Minute] = {}
        for row in rows:
            known = together.setdefault((row.minute, row.target), _empty(row))
            known.tally.include(_minute(row).tally)
        return list(together.values())

    async def delete_before(self, minute: int, opened_ms: int) -> None:
        """Delete measurements of minutes before this one, and circuits that opened before then."""
        async with self._database.transaction() as connection:
            await connection.execute(sa.delete(provider_metrics).where(provider_metrics.c.minute < minute))
            await connection.execute(
                sa.delete(circuit_openings).where(circuit_openings.c.opened_at < opened_ms)
            )


def _storable(name: str) -> bool:
    """Tell whether a name fits: one that does not would keep all others from being written."""
    return len(name) <= NAME_LIMIT and "\0" not in name


def _row(each: Minute) -> dict[str, Any]:
    tally = each.tally
    return {
        "minute": each.minute,
        "target": each.target.name,
        "instance_id": each.instance_id,
        "provider": each.target.provider,
        "attempts": tally.attempts,
        "successes": tally.successes,
        "failures": tally.failures,
        "cancelled": tally.cancelled,
        "latency": tally.latency.to_bytes(),
        "first_token": tally.first_token.to_bytes(),
    }


def _empty(row: Any) -> Minute:
    return Minute(row.minute, Target.parse(row.target), "", Tally())


def _minute(row: Any) -> Minute:
    tally = Tally(
        row.attempts,
        row.successes,
        row.failures,
        row.cancelled,
        Sketch.from_bytes(row.latency),
        Sketch.from_bytes(row.first_token),
    )
    return Minute(row.minute, Target.parse(row.target), row.instance_id, tally)
