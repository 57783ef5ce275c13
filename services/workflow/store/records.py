"""What lies in the database, and how a job changes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.db import Database
from services.common.outbox import Outbox
from services.workflow.domain.states import FINAL, may_become
from services.workflow.tables import attempt, job, job_event

SETTLE_QUEUE = "job.settle"
NOTIFY_QUEUE = "job.notify"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a job belongs to: to everyone else it does not exist."""

    organisation_id: str
    owner: str
    """The key, or the person without one."""


class Records:
    """What the stores of this service share."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self.database = database
        self.outbox = outbox

    def insert(self, table: sa.Table) -> Any:
        """Return an insert that can say what to do on a conflict."""
        return (sqlite.insert if self.database.sqlite else postgresql.insert)(table)

    async def job_of(self, job_id: str) -> Any:
        """Return a job's row, or None."""
        async with self.database.reading() as connection:
            return (await connection.execute(sa.select(job).where(job.c.id == job_id))).one_or_none()

    async def lock_job(self, connection: AsyncConnection, job_id: str) -> Any:
        """Return a job's row, which nobody else changes until this transaction has ended."""
        query = sa.select(job).where(job.c.id == job_id).with_for_update()
        return (await connection.execute(query)).one_or_none()

    async def change(
        self, connection: AsyncConnection, row: Any, now: int, event: str, detail: str = "", **values: Any
    ) -> None:
        """Change a locked job, and write down what happened. An ended job never changes its state."""
        state = values.get("state", row.state)
        if state != row.state:
            if not may_become(row.state, state):
                raise ValueError(f"the job {row.id} cannot go from {row.state} to {state}")
            if state in FINAL:
                values["ended_at"] = now
        version = row.version + 1
        await connection.execute(sa.update(job).where(job.c.id == row.id).values(version=version, **values))
        await self.note(connection, row.id, version, event, detail, now)
        if state in FINAL and state != row.state:
            await self.outbox.append(connection, SETTLE_QUEUE, row.id, now)
            if row.webhook_endpoint_id:
                await self.outbox.append(connection, NOTIFY_QUEUE, row.id, now)

    async def note(
        self, connection: AsyncConnection, job_id: str, seq: int, event: str, detail: str, now: int
    ) -> None:
        """Append to a job's history."""
        entry = {"job_id": job_id, "seq": seq, "type": event, "detail": detail[:2000], "at": now}
        await connection.execute(sa.insert(job_event), entry)

    async def dispatch(
        self,
        connection: AsyncConnection,
        attempt_id: str,
        job_id: str,
        number: int,
        target_index: int,
        queue: str,
        effect_key: str,
        now: int,
        due_at: int = 0,
        asked: bool = False,
    ) -> None:
        """Begin an attempt: its row, and the message that brings it to a worker."""
        row = {
            "id": attempt_id,
            "job_id": job_id,
            "number": number,
            "target_index": target_index,
            "state": "dispatched",
            "queue": queue,
            "effect_key": effect_key,
            "fence": 0,
            "worker": "",
            "lease_until": 0,
            "asked": asked,
            "provider_job_id": "",
            "poll_at": 0,
            "polls": 0,
            "cancel_sent": False,
            "reason": "",
            "message": "",
            "dispatched_at": due_at or now,
            "ended_at": 0,
        }
        await connection.execute(sa.insert(attempt), row)
        await self.outbox.append(connection, queue, attempt_id, now, due_at)

    async def attempts_of(self, connection: AsyncConnection, job_id: str) -> Sequence[Any]:
        """Return a job's attempts in order."""
        query = sa.select(attempt).where(attempt.c.job_id == job_id).order_by(attempt.c.number)
        return (await connection.execute(query)).all()
