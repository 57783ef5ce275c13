"""Notifications of providers: noted once, in the transaction that sends them to a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.workflow.store.records import NOTICE_QUEUE, Records
from services.workflow.tables import attempt, job, webhook_event


class Notices(Records):
    """The side of providers that call."""

    async def by_provider_job(self, provider_job_id: str) -> Sequence[tuple[Any, Any]]:
        """Return the attempts that a provider knows by this id, with their jobs."""
        query = sa.select(attempt).where(attempt.c.provider_job_id == provider_job_id)
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).all()
            return [
                (row, (await connection.execute(sa.select(job).where(job.c.id == row.job_id))).one())
                for row in rows
            ]

    async def note_notice(
        self, provider: str, event_id: str, attempt_id: str, progress: bytes, now: int
    ) -> bool:
        """Note a notification and let a worker take it in. Tells whether it is the first of its id."""
        row = {
            "provider": provider,
            "event_id": event_id,
            "attempt_id": attempt_id,
            "progress": progress,
            "at": now,
        }
        statement = self.insert(webhook_event).values(row).on_conflict_do_nothing()
        async with self.database.transaction() as connection:
            taken = await connection.execute(statement.returning(webhook_event.c.event_id))
            if taken.one_or_none() is None:
                return False
            await self.outbox.append(connection, NOTICE_QUEUE, attempt_id, now)
        return True

    async def notices_of(self, attempt_id: str) -> tuple[Any, Any, Sequence[bytes]]:
        """Return an attempt, its job, and what was noted about it, the oldest first; None when it is gone."""
        query = (
            sa.select(webhook_event.c.progress)
            .where(webhook_event.c.attempt_id == attempt_id)
            .order_by(webhook_event.c.at)
        )
        async with self.database.reading() as connection:
            found = await connection.execute(sa.select(attempt).where(attempt.c.id == attempt_id))
            row = found.one_or_none()
            if row is None:
                return None, None, ()
            owner = (await connection.execute(sa.select(job).where(job.c.id == row.job_id))).one()
            return row, owner, (await connection.scalars(query)).all()
