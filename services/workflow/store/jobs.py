"""Jobs as their callers see them: begin, look, list, cancel, remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.workflow.domain.errors import IdempotencyKeyReusedError, JobNotEndedError, JobNotFoundError
from services.workflow.domain.kinds import BATCH_KIND
from services.workflow.domain.routes import Route
from services.workflow.domain.states import (
    ACCEPTED,
    CANCEL_REQUESTED,
    CANCELLED,
    EXPIRED,
    FINAL,
    IDLE,
    QUEUED,
    RUNNING,
    SUCCEEDED,
)
from services.workflow.store.records import ADVANCE_QUEUE, SETTLE_QUEUE, SMALL, Owner, Records, first_attempts
from services.workflow.tables import attempt, effect_result, job, job_event

SWEEP = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job that is to begin."""

    id: str
    organisation_id: str
    owner: str
    key_id: str
    user_id: str
    workspace_id: str
    kind: str
    priority: str
    model: str
    input: bytes
    targets: bytes
    idempotency_key: str
    fingerprint: str
    strict: bool
    parallel: bool
    webhook_endpoint_id: str
    hold_id: str
    estimate: int
    deadline_at: int
    routes: Sequence[Route]
    """To the targets at which attempts begin at once: one, or several in a race."""
    parent_id: str = ""
    item_index: int = 0
    max_concurrency: int = 0
    project_id: str = ""
    tokens: int = 0
    """The most that it may use of limits of tokens; not kept."""
    hold_until: int = 0
    """When the hold expires, unless it is extended."""
    waiting: bool = False
    """An item of a batch whose turn comes later."""


# What a new job says of itself that is a column.
_GIVEN = [field.name for field in fields(NewJob) if field.name not in ("routes", "waiting", "tokens")]


class Jobs(Records):
    """The callers' side."""

    async def create(self, new: NewJob, now: int) -> tuple[Any, bool]:
        """Begin a job; return its row and whether it is new. Raises IdempotencyKeyReusedError."""
        async with self.database.transaction() as connection:
            return await self.create_in(connection, new, now)

    async def create_in(self, connection: AsyncConnection, new: NewJob, now: int) -> tuple[Any, bool]:
        """Do the same inside a transaction."""
        statement = self.insert(job).values(row_of(new, now)).on_conflict_do_nothing().returning(*job.c)
        created = (await connection.execute(statement)).one_or_none()
        if created is None:
            return await self._known(connection, new), False
        await self.note(connection, new.id, 1, "job.created", "", now)
        if not new.waiting:
            await self.dispatch(connection, first_attempts(new.id, new.routes, now), now)
        return created, True

    async def _known(self, connection: AsyncConnection, new: NewJob) -> Any:
        query = sa.select(job).where(
            job.c.organisation_id == new.organisation_id,
            job.c.owner == new.owner,
            job.c.idempotency_key == new.idempotency_key,
        )
        known = (await connection.execute(query)).one()
        if known.fingerprint != new.fingerprint:
            raise IdempotencyKeyReusedError(
                f"the key {new.idempotency_key!r} began another job, {known.id}; use a new one",
                job_id=known.id,
            )
        return known

    async def find(self, owner: Owner, job_id: str) -> Any:
        """Return a job's row. Raises JobNotFoundError, also for the jobs of others."""
        row = await self.job_of(job_id)
        if row is None or (row.organisation_id, row.owner) != (owner.organisation_id, owner.owner):
            raise JobNotFoundError(f"there is no job {job_id}")
        return row

    async def made_by(self, job_id: str) -> Any:
        """Return the attempt whose result a job has; None when there is none."""
        query = (
            sa.select(attempt, job.c.model_used)
            .join(job, job.c.id == attempt.c.job_id)
            .where(job.c.id == job_id, attempt.c.state == SUCCEEDED)
            .order_by(attempt.c.ended_at)
        )
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return next((row for row in rows if row.model_used.startswith(f"{row.provider}/")), None)

    async def known_by_key(self, owner: Owner, idempotency_key: str) -> Any:
        """Return the job that a key began, or None."""
        query = sa.select(job).where(
            job.c.organisation_id == owner.organisation_id,
            job.c.owner == owner.owner,
            job.c.idempotency_key == idempotency_key,
        )
        async with self.database.reading() as connection:
            return (await connection.execute(query)).one_or_none()

    async def page(
        self,
        owner: Owner,
        limit: int,
        before: tuple[int, str] | None,
        kind: str = "",
        state: str = "",
        parent_id: str = "",
    ) -> Sequence[Any]:
        """Return jobs, the newest first, after `before` (time, id); a batch's by `item_index` (index, id)."""
        query = sa.select(job).where(
            job.c.organisation_id == owner.organisation_id, job.c.owner == owner.owner
        )
        if kind:
            query = query.where(job.c.kind == kind)
        if state:
            query = query.where(job.c.state == state)
        query = query.where(job.c.parent_id == parent_id)
        if parent_id:
            if before is not None:
                query = query.where(job.c.item_index > before[0])
            query = query.order_by(job.c.item_index).limit(limit)
        else:
            if before is not None:
                here = sa.tuple_(job.c.created_at, job.c.id)
                query = query.where(here < sa.tuple_(*map(sa.literal, before)))
            query = query.order_by(job.c.created_at.desc(), job.c.id.desc()).limit(limit)
        async with self.database.reading() as connection:
            return (await connection.execute(query)).all()

    async def ahead_of(self, row: Any) -> int:
        """Return how many attempts wait in the same queue before those of a job."""
        own = sa.select(sa.func.min(attempt.c.dispatched_at)).where(
            attempt.c.job_id == row.id, attempt.c.state.in_(IDLE)
        )
        queue = sa.select(attempt.c.queue).where(attempt.c.job_id == row.id).limit(1)
        query = sa.select(sa.func.count()).where(
            attempt.c.state.in_(IDLE),
            attempt.c.queue == queue.scalar_subquery(),
            attempt.c.dispatched_at < own.scalar_subquery(),
        )
        async with self.database.reading() as connection:
            return await connection.scalar(query) or 0

    async def cancel(self, job_id: str, now: int) -> Any:
        """Ask a job to stop, a batch with its items: what nobody works on ends at once. Again: no change."""
        async with self.database.transaction() as connection:
            row = await self.lock_job(connection, job_id)
            await self._cancel(connection, row, now)
            if row.kind == BATCH_KIND:
                items = sa.select(job.c.id).where(job.c.parent_id == job_id, job.c.state.not_in(FINAL))
                for item_id in (await connection.scalars(items.order_by(job.c.id))).all():
                    await self._cancel(connection, await self.lock_job(connection, item_id), now)
                await self.outbox.append(connection, ADVANCE_QUEUE, job_id, now)
        return await self.job_of(job_id)

    async def _cancel(self, connection: AsyncConnection, row: Any, now: int) -> None:
        if row.state == QUEUED:
            await self._end_dispatched(connection, row.id, now)
            await self.change(connection, row, now, "job.cancelled", state=CANCELLED)
        elif row.state == RUNNING:
            await self.change(connection, row, now, "job.cancel_requested", state=CANCEL_REQUESTED)
            # Those that wait for their provider are asked about now, not at their next turn.
            waiting = attempt.c.job_id == row.id, attempt.c.state == ACCEPTED
            await connection.execute(sa.update(attempt).where(*waiting).values(poll_at=now))

    async def _end_dispatched(self, connection: AsyncConnection, job_id: str, now: int) -> None:
        waiting = attempt.c.job_id == job_id, attempt.c.state.in_(IDLE)
        await connection.execute(sa.update(attempt).where(*waiting).values(state=CANCELLED, ended_at=now))

    async def expire_due(self, now: int) -> list[str]:
        """End jobs whose deadline has passed and return them. What their providers make is not waited for."""
        due = sa.select(job.c.id).where(
            job.c.state.in_((QUEUED, RUNNING, CANCEL_REQUESTED)),
            job.c.deadline_at <= now,
            # A batch ends with its items.
            job.c.kind != BATCH_KIND,
        )
        expired = []
        for (job_id,) in await self.database.look(due.order_by(job.c.deadline_at).limit(SWEEP)):
            async with self.database.transaction() as connection:
                row = await self.lock_job(connection, job_id)
                if row.state in FINAL or row.deadline_at > now:
                    continue
                await self._end_dispatched(connection, job_id, now)
                reason = {"error_reason": "DEADLINE_EXCEEDED", "error_message": "its deadline has passed"}
                await self.change(connection, row, now, "job.expired", state=EXPIRED, **reason)
                expired.append(job_id)
        return expired

    async def remove(self, owner: Owner, job_id: str) -> bytes:
        """Remove an ended job and return its result, whose files go too.

        Raises JobNotEndedError, JobNotFoundError.
        """
        row = await self.find(owner, job_id)
        if row.state not in FINAL or not row.settled:
            raise JobNotEndedError(f"the job {job_id} is {row.state}; cancel it first", state=row.state)
        async with self.database.transaction() as connection:
            items = (await connection.scalars(sa.select(job.c.id).where(job.c.parent_id == job_id))).all()
            gone = [job_id, *items]
            keys = sa.select(attempt.c.effect_key).where(attempt.c.job_id.in_(gone))
            await connection.execute(sa.delete(effect_result).where(effect_result.c.effect_key.in_(keys)))
            await connection.execute(sa.delete(attempt).where(attempt.c.job_id.in_(gone)))
            await connection.execute(sa.delete(job_event).where(job_event.c.job_id.in_(gone)))
            await connection.execute(sa.delete(job).where(job.c.id.in_(gone)))
        return bytes(row.result)

    async def ended(self, job_ids: Sequence[str]) -> Sequence[Any]:
        """Return jobs, without their large parts, for their settlement."""
        async with self.database.reading() as connection:
            return (await connection.execute(sa.select(*SMALL).where(job.c.id.in_(job_ids)))).all()

    async def settle_later(self, due: Mapping[str, int], now: int) -> None:
        """Have jobs settled again, each at its time."""
        if due:
            messages = [(SETTLE_QUEUE, job_id, due_at) for job_id, due_at in due.items()]
            async with self.database.transaction() as connection:
                await self.outbox.append_all(connection, messages, now)

    async def settled(self, costs: Mapping[str, int], now: int) -> None:
        """Note that billing has booked what jobs cost, and has set the rest free."""
        if not costs:
            return
        amount = sa.case(costs, value=job.c.id, else_=0)
        values = {"settled": True, "cost": sa.cast(amount, sa.BigInteger), "version": job.c.version + 1}
        statement = sa.update(job).where(job.c.id.in_(costs), ~job.c.settled).values(values)
        # In the order in which everyone locks.
        locked = sa.select(job.c.id).where(job.c.id.in_(costs)).order_by(job.c.id).with_for_update()
        async with self.database.transaction() as connection:
            await connection.execute(locked)
            parents = await connection.scalars(statement.returning(job.c.parent_id))
            # A batch is settled after its items.
            messages = [(SETTLE_QUEUE, parent_id, now) for parent_id in {*parents.all()} if parent_id]
            if messages:
                await self.outbox.append_all(connection, messages, now)


def row_of(new: NewJob, now: int) -> dict[str, Any]:
    """Return the row of a job that is to begin."""
    values = {name: getattr(new, name) for name in _GIVEN}
    return _blank(now) | values | {"attempts": 0 if new.waiting else len(new.routes)}


def _blank(now: int) -> dict[str, Any]:
    return {
        "state": QUEUED,
        "cost": 0,
        "settled": False,
        "model_used": "",
        "progress": None,
        "queue_position": None,
        "result": b"",
        "error_reason": "",
        "error_message": "",
        "error_retryable": False,
        "maybe_double_charge": False,
        "version": 1,
        "created_at": now,
        "started_at": 0,
        "ended_at": 0,
    }
