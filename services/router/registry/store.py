"""The tables of the registry. A change is written with its revision and its place in the feed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.change_feed import ChangeFeed, changes_table
from services.common.db import Database
from services.router.domain.registration import NamesTakenError

TOPIC = "model"
metadata = sa.MetaData()
model = sa.Table(
    "model",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("document", sa.Text),
    sa.Column("imported", sa.Text),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Column("updated_by", sa.String(128), nullable=False),
)
model_name = sa.Table(
    "model_name",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("model", sa.String(128), nullable=False),
)
model_revision = sa.Table(
    "model_revision",
    metadata,
    sa.Column("model", sa.String(128), primary_key=True),
    sa.Column("revision", sa.Integer, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("act", sa.String(16), nullable=False),
    sa.Column("before", sa.Text),
    sa.Column("after", sa.Text),
)
changes = changes_table(metadata)


@dataclass(frozen=True, slots=True)
class Stored:
    """A row of the registry. A deleted model leaves one, so that its revisions go on counting."""

    name: str
    document: str | None
    """The definition as JSON; None when it was deleted."""
    imported: str | None
    """What the last import said; None for a model that no import made."""
    revision: int
    updated_at: int
    """Milliseconds since 1970."""
    updated_by: str


@dataclass(frozen=True, slots=True)
class Revision:
    """A row of the history."""

    revision: int
    at: int
    """Milliseconds since 1970."""
    actor: str
    act: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be written for one model."""

    name: str
    before: Stored | None
    document: str | None
    imported: str | None
    names: Sequence[str]
    """Its name and aliases; empty when it is deleted."""
    act: str


class Unit:
    """One transaction over models."""

    def __init__(self, connection: AsyncConnection, feed: ChangeFeed) -> None:
        self._connection = connection
        self._feed = feed

    async def read(self, names: Sequence[str] | None = None) -> dict[str, Stored]:
        """Return models by name, locked until the end; all of them without `names`."""
        query = sa.select(model).with_for_update()
        if names is not None:
            query = query.where(model.c.name.in_(names))
        rows = (await self._connection.execute(query)).all()
        return {row.name: Stored(**row._mapping) for row in rows}

    async def write(self, written: Sequence[Change], actor: str, at_ms: int) -> None:
        """Write changes of different models. Raises NamesTakenError."""
        if not written:
            return
        try:
            await self._write_models(written, actor, at_ms)
        except IntegrityError:
            raise NamesTakenError from None
        revisions = [
            {
                "model": change.name,
                "revision": _next(change),
                "at": at_ms,
                "actor": actor,
                "act": change.act,
                "before": None if change.before is None else change.before.document,
                "after": change.document,
            }
            for change in written
        ]
        await self._connection.execute(sa.insert(model_revision), revisions)
        await self._feed.append(self._connection, TOPIC, *(change.name for change in written))

    async def _write_models(self, written: Sequence[Change], actor: str, at_ms: int) -> None:
        rows = [
            {
                "name": change.name,
                "document": change.document,
                "imported": change.imported,
                "revision": _next(change),
                "updated_at": at_ms,
                "updated_by": actor,
            }
            for change in written
        ]
        known = {change.name for change in written if change.before is not None}
        execute = self._connection.execute
        added = [row for row in rows if row["name"] not in known]
        changed = [
            {f"new_{key}": value for key, value in row.items()} for row in rows if row["name"] in known
        ]
        if added:
            await execute(sa.insert(model), added)
        if changed:
            # A row that somebody waits for must stay that row.
            new: dict[str, Any] = {column.name: sa.bindparam(f"new_{column.name}") for column in model.c}
            name = new.pop("name")
            await execute(sa.update(model).where(model.c.name == name).values(new), changed)
        await execute(sa.delete(model_name).where(model_name.c.model.in_([each.name for each in written])))
        names = [{"name": name, "model": change.name} for change in written for name in change.names]
        if names:
            await execute(sa.insert(model_name), names)


def _next(change: Change) -> int:
    return 1 if change.before is None else change.before.revision + 1


class ModelStore:
    """Reads and writes models."""

    def __init__(self, database: Database, feed: ChangeFeed) -> None:
        self._database = database
        self._feed = feed

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Unit]:
        """Open a transaction that writes."""
        async with self._database.transaction() as connection:
            yield Unit(connection, self._feed)

    async def read(self, names: Iterable[str] | None = None) -> list[Stored]:
        """Return models by name, deleted ones too; all of them without `names`."""
        query = sa.select(model).order_by(model.c.name)
        if names is not None:
            query = query.where(model.c.name.in_(list(names)))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [Stored(**row._mapping) for row in rows]

    async def revisions(self, name: str, below: int, limit: int) -> list[Revision]:
        """Return the changes of a model before the revision `below`, newest first; 0: from the newest."""
        table = model_revision.c
        query = sa.select(table.revision, table.at, table.actor, table.act, table.before, table.after)
        query = query.where(table.model == name).order_by(table.revision.desc()).limit(limit)
        if below:
            query = query.where(table.revision < below)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [Revision(**row._mapping) for row in rows]
