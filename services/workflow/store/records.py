"""What lies in the database, and how a job changes there."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.bulk import BulkInsert, BulkUpdate, at_once
from services.common.db import Database
from services.common.ids import new_id
from services.common.outbox import Outbox
from services.workflow.domain.routes import Route
from services.workflow.domain.states import DISPATCHED, FINAL, PARKED, may_become
from services.workflow.tables import attempt, job, job_event

SECOND = 1_000_000
SETTLE_QUEUE = "job.settle"
NOTIFY_QUEUE = "job.notify"
ADVANCE_QUEUE = "job.advance"
NOTICE_QUEUE = "job.notice"
VOICE_QUEUE = "voice.remove"
# What a dead worker held does not queue up again behind everything that has come since.
LOST_QUEUE = "job.lost"
# An attempt whose message has not brought a worker by then gets another message.
UNCLAIMED_S = 30
# What is large and seldom looked at is not read with the rest of a job.
SMALL = [column for column in job.c if column.name not in ("input", "targets", "result")]


def storable(text: str, limit: int) -> str:
    """Return what others have said as a column takes it: cut, and without NUL, which PostgreSQL refuses."""
    return text.replace("\0", "")[:limit]


def row_type(name: str, columns: Iterable[sa.Column[Any]]) -> Any:
    """Return a row of a table that stands alone, out of a join."""
    return namedtuple(name, [column.name for column in columns])


AttemptRow, JobRow = row_type("attempt", attempt.c), row_type("job", job.c)
ALL = tuple(attempt.c)
# What has to be known of an attempt, and of its job, to end them well.
ENDED_ATTEMPT = (attempt.c.id, attempt.c.fence, attempt.c.state, attempt.c.concurrency)
ENDED_JOB = (
    job.c.id,
    job.c.state,
    job.c.version,
    job.c.attempts,
    job.c.webhook_endpoint_id,
    job.c.parent_id,
)


@dataclass(frozen=True, slots=True)
class _Lock:
    """How attempts are locked together with their jobs, and what then comes back."""

    query: sa.Select[Any]
    attempt: Any
    job: Any


def _lock(of_job: Sequence[sa.Column[Any]], of_attempt: Sequence[sa.Column[Any]], *, sqlite: bool) -> _Lock:
    ids: Any = sa.bindparam("ids", type_=postgresql.ARRAY(sa.Text))
    # One text for any number of them, where there are arrays.
    named = attempt.c.id.in_(sa.bindparam("ids", expanding=True)) if sqlite else attempt.c.id == sa.any_(ids)
    query = (
        sa.select(*of_job, *of_attempt)
        .select_from(job.join(attempt, attempt.c.job_id == job.c.id))
        .where(named)
        .order_by(job.c.id, attempt.c.id)
        .with_for_update()
    )
    return _Lock(query, row_type("attempt", of_attempt), row_type("job", of_job))


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
        # Made once: to build a statement costs more than to run it.
        self._new_events = BulkInsert(database, job_event, "")
        self._updates: dict[tuple[str, tuple[str, ...]], BulkUpdate] = {}
        self._locks: dict[tuple[int, int], _Lock] = {}

    def insert(self, table: sa.Table) -> Any:
        """Return an insert that can say what to do on a conflict."""
        return (sqlite.insert if self.database.sqlite else postgresql.insert)(table)

    async def job_of(self, job_id: str) -> Any:
        """Return a job's row, or None."""
        async with self.database.reading() as connection:
            return (await connection.execute(sa.select(job).where(job.c.id == job_id))).one_or_none()

    async def lock_job(self, connection: AsyncConnection, job_id: str) -> Any:
        """Return a job's row without its large parts, which nobody else changes meanwhile."""
        query = sa.select(*SMALL).where(job.c.id == job_id).with_for_update()
        return (await connection.execute(query)).one_or_none()

    async def lock_both(self, connection: AsyncConnection, attempt_id: str) -> tuple[Any, Any] | None:
        """Return an attempt and its whole job, locked in that order: the job first."""
        query = (
            sa.select(*job.c, *attempt.c)
            .select_from(job.join(attempt, attempt.c.job_id == job.c.id))
            .where(attempt.c.id == attempt_id)
            .with_for_update()
        )
        row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        return AttemptRow._make(row[len(job.c) :]), JobRow._make(row[: len(job.c)])

    async def lock_all(
        self,
        connection: AsyncConnection,
        attempt_ids: Sequence[str],
        columns: Sequence[sa.Column[Any]],
        of_attempt: Sequence[sa.Column[Any]] = ALL,
    ) -> list[tuple[Any, Any]]:
        """Return attempts with these columns of their jobs, locked in the order in which everyone locks."""
        known = self._locks.get((len(columns), len(of_attempt)))
        if known is None:
            known = self._locks[len(columns), len(of_attempt)] = _lock(
                columns, of_attempt, sqlite=self.database.sqlite
            )
        rows = (await connection.execute(known.query, {"ids": list(attempt_ids)})).all()
        return [
            (known.attempt._make(row[len(columns) :]), known.job._make(row[: len(columns)])) for row in rows
        ]

    async def change(
        self, connection: AsyncConnection, row: Any, now: int, event: str, detail: str = "", **values: Any
    ) -> None:
        """Change a locked job, and write down what happened. An ended job never changes its state."""
        version, values = row.version + 1, _ending(row, values, now)
        update = sa.update(job).where(job.c.id == row.id).values(version=version, **values)
        entry = _event(row.id, version, event, detail, now)
        messages = _messages(row, values.get("state", row.state), now)
        if self.database.sqlite:
            await connection.execute(update)
            await connection.execute(sa.insert(job_event), entry)
            if messages:
                await self.outbox.append_all(connection, messages, now)
            return
        # One statement, one way to the database.
        update = update.add_cte(sa.insert(job_event).values(entry).cte("noted"))
        for number, message in enumerate(messages):
            update = update.add_cte(self.outbox.appending(message, now).cte(f"sent{number}"))
        await connection.execute(update)

    async def change_all(
        self,
        connection: AsyncConnection,
        changes: Sequence[tuple[Any, dict[str, Any]]],
        now: int,
        event: str,
        detail: str = "",
        also: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Change locked jobs, the same columns of each, as `change` does with one.

        `also` are statements that go along, see services/common/bulk.py: they touch other tables.
        """
        statements = [*also, *(self._changing(changes, now, event, detail) if changes else ())]
        for statement in at_once(self.database, statements):
            await connection.exec_driver_sql(*statement)

    def _changing(
        self, changes: Sequence[tuple[Any, dict[str, Any]]], now: int, event: str, detail: str
    ) -> Sequence[tuple[str, Any]]:
        ended = [(row, _ending(row, values, now)) for row, values in changes]
        names = tuple(ended[0][1])
        rows = [(row.id, row.version + 1, *values.values()) for row, values in ended]
        entries = [tuple(_event(row.id, row.version + 1, event, detail, now).values()) for row, _ in ended]
        messages = [
            each for row, values in ended for each in _messages(row, values.get("state", row.state), now)
        ]
        return [
            self._update(job, ("version", *names)).of(rows),
            *self._new_events.of(entries),
            *self.outbox.statements(messages, now),
        ]

    def updating(self, table: sa.Table, rows: Sequence[dict[str, Any]]) -> tuple[str, Any]:
        """Return the driver's statement that changes rows by their `id`, the same columns of each."""
        _, *names = rows[0]
        return self._update(table, tuple(names)).of([tuple(row.values()) for row in rows])

    def _update(self, table: sa.Table, names: tuple[str, ...]) -> BulkUpdate:
        known = self._updates.get((table.name, names))
        if known is None:
            known = BulkUpdate(self.database, table.c.id, [table.c[name] for name in names])
            self._updates[table.name, names] = known
        return known

    async def note(
        self, connection: AsyncConnection, job_id: str, seq: int, event: str, detail: str, now: int
    ) -> None:
        """Append to a job's history."""
        await connection.execute(sa.insert(job_event), _event(job_id, seq, event, detail, now))

    async def dispatch(
        self, connection: AsyncConnection, attempts: Sequence[dict[str, Any]], now: int
    ) -> None:
        """Begin attempts: their rows, and the messages that bring them to workers."""
        if attempts:
            await connection.execute(sa.insert(attempt), list(attempts))
            messages = [(row["queue"], row["id"], row["dispatched_at"]) for row in attempts]
            await self.outbox.append_all(connection, messages, now)

    async def attempts_of(self, connection: AsyncConnection, job_id: str) -> Sequence[Any]:
        """Return a job's attempts in order."""
        query = sa.select(attempt).where(attempt.c.job_id == job_id).order_by(attempt.c.number)
        return (await connection.execute(query)).all()

    async def lock_provider(self, connection: AsyncConnection, provider: str) -> None:
        """Let nobody else count what a provider runs until this transaction has ended."""
        if not self.database.sqlite:
            key = sa.func.hashtext(f"omnihub.provider.{provider}")
            await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))

    async def unpark(self, connection: AsyncConnection, provider: str, now: int) -> bool:
        """Send the attempt that has waited longest for a provider to a worker, interactive ones first."""
        interactive = sa.case((attempt.c.queue.like("%.interactive"), 0), else_=1)
        waiting = (
            sa.select(attempt.c.id, attempt.c.queue)
            .where(attempt.c.provider == provider, attempt.c.concurrency > 0, attempt.c.state == PARKED)
            .order_by(interactive, attempt.c.dispatched_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        row = (await connection.execute(waiting)).one_or_none()
        if row is None:
            return False
        values = {"state": DISPATCHED, "lease_until": now + UNCLAIMED_S * SECOND}
        await connection.execute(sa.update(attempt).where(attempt.c.id == row.id).values(values))
        await self.outbox.append(connection, row.queue, row.id, now)
        return True


def _ending(row: Any, values: dict[str, Any], now: int) -> dict[str, Any]:
    """Return the values with the time of the end, when they end a job. Raises ValueError: that is no way."""
    state = values.get("state", row.state)
    if state == row.state:
        return values
    if not may_become(row.state, state):
        raise ValueError(f"the job {row.id} cannot go from {row.state} to {state}")
    return {**values, "ended_at": now} if state in FINAL else values


def _messages(row: Any, state: str, now: int) -> list[tuple[str, str, int]]:
    """Return what has to be done when a job goes to a state."""
    if state not in FINAL or state == row.state:
        return []
    messages = [(SETTLE_QUEUE, row.id, now)]
    if row.webhook_endpoint_id:
        messages.append((NOTIFY_QUEUE, row.id, now))
    if row.parent_id:
        messages.append((ADVANCE_QUEUE, row.parent_id, now))
    return messages


def _event(job_id: str, seq: int, event: str, detail: str, now: int) -> dict[str, Any]:
    return {"job_id": job_id, "seq": seq, "type": event, "detail": storable(detail, 2000), "at": now}


def new_attempt(
    job_id: str,
    number: int,
    target_index: int,
    route: Route,
    now: int,
    *,
    effect_key: str = "",
    due_at: int = 0,
    asked: bool = False,
) -> dict[str, Any]:
    """Return the row of an attempt that is to begin. `asked`: its provider may know it already."""
    due = due_at or now
    return {
        "id": new_id("att"),
        "job_id": job_id,
        "number": number,
        "target_index": target_index,
        "state": DISPATCHED,
        "queue": route.queue,
        "provider": route.provider,
        "concurrency": route.concurrency,
        "crashes": 0,
        "effect_key": effect_key or new_id("eff"),
        "fence": 0,
        "worker": "",
        "lease_until": due + UNCLAIMED_S * SECOND,
        "asked": asked,
        "provider_job_id": "",
        "poll_at": 0,
        "polls": 0,
        "cancel_sent": False,
        "reason": "",
        "message": "",
        "dispatched_at": due,
        "ended_at": 0,
    }


def first_attempts(job_id: str, routes: Iterable[Route], now: int) -> list[dict[str, Any]]:
    """Return the attempts a job begins with: one, or those of a race."""
    return [new_attempt(job_id, index + 1, index, route, now) for index, route in enumerate(routes)]
