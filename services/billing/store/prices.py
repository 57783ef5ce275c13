"""The price book on disk: versions, what they were set for, and margins. Nothing is ever changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1.price_pb2 import Margin, Price
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.store.budget_tables import organisation_plan
from services.billing.store.tables import margin_entry, price_entry, price_version
from services.common.db import Database

CONFIGURED, ADMIN = "configured", "admin"
TOPIC = "price"
BATCH = 500

# Asked again and again, so made once; see Database.look.
_COUNTS = sa.select(
    *(
        sa.select(sa.func.count()).where(table.c.source == ADMIN).scalar_subquery()
        for table in (price_entry, margin_entry)
    )
)


@dataclass(frozen=True, slots=True)
class PriceEntry:
    """That a price applies to a name from a moment on, or does not any more."""

    provider: str
    model: str
    configured_model: str
    price: Price
    source: str
    effective_from: int
    recorded_at: int
    withdrawn: bool = False
    actor: str = ""
    note: str = ""
    id: int = 0

    @property
    def name(self) -> str:
        """Return `provider/model`, or the name of the configured model."""
        return self.configured_model or f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class MarginEntry:
    """That a margin applies to its scope from a moment on, or does not any more."""

    margin: Margin
    source: str
    recorded_at: int
    withdrawn: bool = False
    actor: str = ""
    note: str = ""
    id: int = 0

    @property
    def scope(self) -> tuple[str, str, str]:
        """Return whom and what it is for: later entries of the same scope replace earlier ones."""
        return self.margin.organisation_id, self.margin.plan, self.margin.model


class PriceStore:
    """Appends and reads; changes nothing."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._insert: Any = sqlite.insert if database.sqlite else postgresql.insert

    async def keep(self, connection: AsyncConnection, prices: Iterable[Price], now: int) -> None:
        """Keep the numbers of these versions for ever. Idempotent."""
        rows = {
            price.version: {"version": price.version, "price": _numbers(price), "recorded_at": now}
            for price in prices
        }
        if rows:
            await connection.execute(
                self._insert(price_version).on_conflict_do_nothing(),
                [rows[version] for version in sorted(rows)],
            )

    async def add_prices(self, connection: AsyncConnection, entries: Sequence[PriceEntry], now: int) -> None:
        """Append entries, and their versions."""
        await self.keep(connection, (entry.price for entry in entries), now)
        rows = [
            {
                "provider": entry.provider,
                "model": entry.model,
                "configured_model": entry.configured_model,
                "version": entry.price.version,
                "source": entry.source,
                "effective_from": entry.effective_from,
                "recorded_at": entry.recorded_at,
                "withdrawn": entry.withdrawn,
                "actor": entry.actor,
                "note": entry.note,
            }
            for entry in entries
        ]
        if rows:
            await connection.execute(sa.insert(price_entry), rows)

    async def add_margins(self, connection: AsyncConnection, entries: Sequence[MarginEntry]) -> None:
        """Append entries."""
        rows = [
            {
                "organisation_id": entry.margin.organisation_id,
                "plan": entry.margin.plan,
                "model": entry.margin.model,
                "version": entry.margin.version,
                "margin": entry.margin.SerializeToString(deterministic=True),
                "source": entry.source,
                "recorded_at": entry.recorded_at,
                "withdrawn": entry.withdrawn,
                "actor": entry.actor,
                "note": entry.note,
            }
            for entry in entries
        ]
        if rows:
            await connection.execute(sa.insert(margin_entry), rows)

    async def counts(self) -> tuple[int, int]:
        """Return how many prices and how many margins administrators have set: it only grows."""
        ((prices_set, margins_set),) = await self.database.look(_COUNTS)
        return prices_set, margins_set

    async def administered(self) -> list[PriceEntry]:
        """Return all entries of administrators, oldest first."""
        async with self.database.reading() as connection:
            return await _entries(connection, price_entry.c.source == ADMIN)

    async def declared(self) -> dict[str, PriceEntry]:
        """Return the last entry of each name that the file declares or declared."""
        async with self.database.reading() as connection:
            entries = await _entries(connection, price_entry.c.source == CONFIGURED)
        return {entry.name: entry for entry in entries}

    async def last_listed(self) -> dict[tuple[str, str], str]:
        """Return the last recorded version of list prices, by provider and model."""
        newest = (
            sa.select(sa.func.max(price_entry.c.id))
            .where(price_entry.c.source.not_in([ADMIN, CONFIGURED]))
            .group_by(price_entry.c.provider, price_entry.c.model)
        )
        query = sa.select(price_entry.c.provider, price_entry.c.model, price_entry.c.version)
        async with self.database.reading() as connection:
            rows = await connection.execute(query.where(price_entry.c.id.in_(newest)))
            return {(row.provider, row.model): row.version for row in rows}

    async def versions(self, provider: str, model: str, before: int | None, limit: int) -> list[PriceEntry]:
        """Return up to `limit` entries, newest first, that are older than number `before`."""
        conditions = []
        if provider:
            conditions.append(price_entry.c.provider == provider)
        if model:
            conditions.append((price_entry.c.model == model) | (price_entry.c.configured_model == model))
        if before is not None:
            conditions.append(price_entry.c.id < before)
        async with self.database.reading() as connection:
            return await _entries(connection, *conditions, newest_first=True, limit=limit)

    async def margins(self, source: str = "") -> list[MarginEntry]:
        """Return all margins ever set, oldest first."""
        query = sa.select(margin_entry).order_by(margin_entry.c.id)
        if source:
            query = query.where(margin_entry.c.source == source)
        async with self.database.reading() as connection:
            return [_margin_entry(row) for row in await connection.execute(query)]

    async def margin_versions(self, before: int | None, limit: int) -> list[MarginEntry]:
        """Return up to `limit` margins, newest first, that are older than number `before`."""
        query = sa.select(margin_entry).order_by(margin_entry.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(margin_entry.c.id < before)
        async with self.database.reading() as connection:
            return [_margin_entry(row) for row in await connection.execute(query)]

    async def plans(self) -> Mapping[str, str]:
        """Return the plan of each organisation that was assigned one."""
        query = sa.select(organisation_plan.c.organisation_id, organisation_plan.c.plan)
        async with self.database.reading() as connection:
            return {row.organisation_id: row.plan for row in await connection.execute(query)}

    async def find_versions(
        self, prices: Iterable[str], margins: Iterable[str]
    ) -> tuple[Mapping[str, Price], Mapping[str, Margin]]:
        """Return prices and margins by version, for rating again."""
        found_prices: dict[str, Price] = {}
        found_margins: dict[str, Margin] = {}
        async with self.database.reading() as connection:
            for some in _batches(prices):
                query = sa.select(price_version).where(price_version.c.version.in_(some))
                for row in await connection.execute(query):
                    found_prices[row.version] = Price.FromString(row.price)
            for some in _batches(margins):
                chosen = sa.select(margin_entry).where(margin_entry.c.version.in_(some))
                for row in await connection.execute(chosen):
                    found_margins[row.version] = Margin.FromString(row.margin)
        return found_prices, found_margins


async def _entries(
    connection: AsyncConnection,
    *conditions: sa.ColumnElement[bool],
    newest_first: bool = False,
    limit: int | None = None,
) -> list[PriceEntry]:
    order = price_entry.c.id.desc() if newest_first else price_entry.c.id
    query = (
        sa.select(price_entry, price_version.c.price)
        .join(price_version, price_version.c.version == price_entry.c.version)
        .where(*conditions)
        .order_by(order)
        .limit(limit)
    )
    return [_price_entry(row) for row in await connection.execute(query)]


def _price_entry(row: sa.Row[Any]) -> PriceEntry:
    return PriceEntry(
        provider=row.provider,
        model=row.model,
        configured_model=row.configured_model,
        price=Price.FromString(row.price),
        source=row.source,
        effective_from=row.effective_from,
        recorded_at=row.recorded_at,
        withdrawn=row.withdrawn,
        actor=row.actor,
        note=row.note,
        id=row.id,
    )


def _margin_entry(row: sa.Row[Any]) -> MarginEntry:
    return MarginEntry(
        margin=Margin.FromString(row.margin),
        source=row.source,
        recorded_at=row.recorded_at,
        withdrawn=row.withdrawn,
        actor=row.actor,
        note=row.note,
        id=row.id,
    )


def _numbers(price: Price) -> bytes:
    unnamed = Price()
    unnamed.CopyFrom(price)
    unnamed.ClearField("key")
    return unnamed.SerializeToString(deterministic=True)


def _batches(names: Iterable[str]) -> Iterable[list[str]]:
    known = sorted({name for name in names if name})
    return [known[start : start + BATCH] for start in range(0, len(known), BATCH)]
