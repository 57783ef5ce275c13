"""The outbox: what is to be done, written in the transaction that makes it necessary.

A row carries ids, never state. Whoever relays it, to a broker or to a handler in this process, takes it for a
while, and removes it once it has been passed on: a crash between the two passes it on again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.bulk import BulkInsert
from services.common.db import Database

BATCH = 200
# A relay that has taken rows and died leaves them to others after this; one that takes longer keeps them.
TAKEN_S = 10
SECOND = 1_000_000


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """Return the `outbox` table; the service's migration creates it with the same columns."""
    return sa.Table(
        "outbox",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("subject_id", sa.String(160), nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to do: `subject_id` names what, `queue` says how."""

    id: int
    queue: str
    subject_id: str
    created_at: int


class Outbox:
    """Reads and writes the table. Times are microseconds since 1970."""

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._database = database
        self._table = table
        self._looks: dict[tuple[str, ...], sa.Select[Any]] = {}
        """Whether anything is due, by queues: asked each second, so each is made once."""
        self._new = BulkInsert(database, table, "", columns=[each for each in table.c if each.name != "id"])

    async def append(
        self, connection: AsyncConnection, queue: str, subject_id: str, now: int, due_at: int = 0
    ) -> None:
        """Add a message, in the transaction that makes it necessary; it is passed on from `due_at`."""
        await self.append_all(connection, [(queue, subject_id, due_at or now)], now)

    async def append_all(
        self, connection: AsyncConnection, messages: Sequence[tuple[str, str, int]], now: int
    ) -> None:
        """Add messages: queue, subject and from when each is passed on."""
        for statement in self.statements(messages, now):
            await connection.exec_driver_sql(*statement)

    def statements(self, messages: Sequence[tuple[str, str, int]], now: int) -> Sequence[tuple[str, Any]]:
        """Return the driver's statements that add messages; see services/common/bulk.py."""
        return self._new.of([(*message, now) for message in messages]) if messages else ()

    def appending(self, message: tuple[str, str, int], now: int) -> sa.Insert:
        """Return the statement that adds a message, to be sent along with another one."""
        names = ("queue", "subject_id", "due_at", "created_at")
        return sa.insert(self._table).values(dict(zip(names, (*message, now), strict=True)))

    async def has_due(self, now: int, queues: Sequence[str] = ()) -> bool:
        """Tell whether a message is due in any of these queues. It locks nothing."""
        key = tuple(queues)
        asked = self._looks.get(key)
        if asked is None:
            due_by = sa.bindparam("due_by", type_=self._table.c.due_at.type)
            asked = self._looks[key] = self._due(due_by, queues).limit(1)
        return bool(await self._database.look(asked, due_by=now))

    def _due(self, now: int | sa.BindParameter[int], queues: Sequence[str]) -> sa.Select[Any]:
        due = sa.select(self._table.c.id).where(self._table.c.due_at <= now)
        # Not `in`: SQLAlchemy writes such a statement anew each time it is run.
        return due.where(sa.or_(*(self._table.c.queue == queue for queue in queues))) if queues else due

    async def take(self, now: int, queues: Sequence[str] = (), limit: int = BATCH) -> list[Message]:
        """Take messages that are due, the oldest first. Any number of relays may do this at once."""
        if not await self.has_due(now, queues):
            return []
        table = self._table
        due = self._due(now, queues).order_by(table.c.due_at, table.c.id).limit(limit)
        async with self._database.transaction() as connection:
            ids = (await connection.scalars(due.with_for_update(skip_locked=True))).all()
            if not ids:
                return []
            update = sa.update(table).where(table.c.id.in_(ids)).values(due_at=now + TAKEN_S * SECOND)
            rows = (await connection.execute(update.returning(*table.c))).all()
        return [_message(row) for row in sorted(rows, key=lambda row: row.id)]

    async def passed_on(self, ids: Sequence[int]) -> None:
        """Remove messages that have been passed on."""
        if ids:
            async with self._database.transaction() as connection:
                await connection.execute(sa.delete(self._table).where(self._table.c.id.in_(ids)))

    async def give_back(self, ids: Sequence[int], due_at: int) -> None:
        """Let messages that could not be passed on be taken again, from `due_at`."""
        if ids:
            statement = sa.update(self._table).where(self._table.c.id.in_(ids)).values(due_at=due_at)
            async with self._database.transaction() as connection:
                await connection.execute(statement)

    async def keep(self, ids: Sequence[int], now: int) -> None:
        """Take messages for longer: they are still being passed on."""
        await self.give_back(ids, now + TAKEN_S * SECOND)

    async def oldest(self) -> int | None:
        """Return when the oldest message was written; None when there is none."""
        async with self._database.reading() as connection:
            oldest: int | None = await connection.scalar(sa.select(sa.func.min(self._table.c.created_at)))
        return oldest


def _message(row: Any) -> Message:
    return Message(row.id, row.queue, row.subject_id, row.created_at)
