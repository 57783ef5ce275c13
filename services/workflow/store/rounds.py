"""What is taken up because its time has come: providers to ask, attempts that were lost, holds that end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.workflow.domain.states import (
    ACCEPTED,
    CANCEL_REQUESTED,
    CLAIMED,
    DISPATCHED,
    PARKED,
    QUEUED,
    RUNNING,
)
from services.workflow.store.records import LOST_QUEUE, SECOND, UNCLAIMED_S, Records
from services.workflow.tables import attempt, job, outbox

SWEEP = 200
# A message that brings nobody is sent again after twice the time, up to about an hour.
MOST_DOUBLINGS = 7

# Asked again and again, so made once; see Database.look.
_POLLS_DUE = sa.select(attempt.c.id).where(
    attempt.c.state == ACCEPTED, attempt.c.poll_at <= sa.bindparam("now")
)
_ANY_POLL_DUE = _POLLS_DUE.limit(1)


class Rounds(Records):
    """The clockwork's side."""

    async def due_polls(self, now: int, hide_s: float, without: Sequence[str] = ()) -> list[tuple[Any, Any]]:
        """Take attempts whose provider is to be asked how far it is, `without` some providers.

        Replicas do not get the same ones.
        """
        due = _POLLS_DUE.where(attempt.c.provider.not_in(without)) if without else _POLLS_DUE
        if not await self.database.look(due.limit(1) if without else _ANY_POLL_DUE, now=now):
            return []
        async with self.database.transaction() as connection:
            locked = due.order_by(attempt.c.poll_at).limit(SWEEP).with_for_update(skip_locked=True)
            ids = (await connection.scalars(locked, {"now": now})).all()
            values = {"poll_at": now + round(hide_s * SECOND), "polls": attempt.c.polls + 1}
            taken = sa.update(attempt).where(attempt.c.id.in_(ids)).values(values).returning(*attempt.c)
            rows = (await connection.execute(taken)).all()
            jobs = sa.select(job).where(job.c.id.in_({row.job_id for row in rows}))
            owners = {row.id: row for row in (await connection.execute(jobs)).all()}
        return [(row, owners[row.job_id]) for row in rows]

    async def poll_again(self, attempt_id: str, at: int) -> None:
        """Say when a provider is to be asked next."""
        waiting = attempt.c.id == attempt_id, attempt.c.state == ACCEPTED
        async with self.database.transaction() as connection:
            values = {"poll_at": at, "lease_until": 0}
            await connection.execute(sa.update(attempt).where(*waiting).values(values))

    async def taking_in(self, attempt_id: str, lease_s: float, now: int) -> bool:
        """Reserve the end of an attempt: what a provider made is fetched once, by a poll or for a notice."""
        free = attempt.c.id == attempt_id, attempt.c.state == ACCEPTED, attempt.c.lease_until < now
        statement = (
            sa.update(attempt)
            .where(*free)
            .values(lease_until=now + round(lease_s * SECOND))
            .returning(attempt.c.id)
        )
        async with self.database.transaction() as connection:
            return (await connection.scalar(statement)) is not None

    async def keep_reserved(self, attempt_id: str, lease_s: float, now: int) -> None:
        """Reserve it for longer."""
        waiting = attempt.c.id == attempt_id, attempt.c.state == ACCEPTED
        values = {"lease_until": now + round(lease_s * SECOND)}
        async with self.database.transaction() as connection:
            await connection.execute(sa.update(attempt).where(*waiting).values(values))

    async def cancel_sent(self, attempt_id: str) -> None:
        """Note that a provider has been asked to stop."""
        async with self.database.transaction() as connection:
            await connection.execute(
                sa.update(attempt).where(attempt.c.id == attempt_id).values(cancel_sent=True)
            )

    async def bring_back_lost(self, now: int) -> int:
        """Send a message again for attempts that nobody came for or whose worker is gone; return how many.

        The former queue up anew; the latter had had their turn, and are taken up before all others.
        """
        message = sa.select(outbox.c.id).where(outbox.c.subject_id == attempt.c.id)
        waits, returns = message.exists(), message.where(outbox.c.queue == LOST_QUEUE).exists()
        async with self.database.reading() as connection:
            claims = (await connection.execute(_newest_claims(now))).all()
            # While workers go through a queue, what stands further back in it is not lost.
            overtaken = [
                sa.and_(attempt.c.queue == queue, attempt.c.dispatched_at <= at) for queue, at in claims
            ]
            lost = sa.or_(
                sa.and_(attempt.c.state == CLAIMED, ~returns),
                sa.and_(
                    attempt.c.state == DISPATCHED,
                    ~waits,
                    sa.or_(*overtaken, attempt.c.queue.not_in([queue for queue, _ in claims])),
                ),
            )
            query = sa.select(attempt.c.id, attempt.c.queue, attempt.c.state, attempt.c.polls).where(
                attempt.c.state.in_((CLAIMED, DISPATCHED)), attempt.c.lease_until < now, lost
            )
            if (await connection.execute(query.limit(1))).one_or_none() is None:
                return 0
        async with self.database.transaction() as connection:
            rows = (await connection.execute(query.limit(SWEEP).with_for_update(skip_locked=True))).all()
            for row in rows:
                if row.state == DISPATCHED:
                    pause = UNCLAIMED_S * 2 ** min(row.polls + 1, MOST_DOUBLINGS)
                    values = {"lease_until": now + pause * SECOND, "polls": row.polls + 1}
                    await connection.execute(sa.update(attempt).where(attempt.c.id == row.id).values(values))
            messages = [(LOST_QUEUE if row.state == CLAIMED else row.queue, row.id, now) for row in rows]
            if messages:
                await self.outbox.append_all(connection, messages, now)
        return len(rows)

    async def unpark_all(self, now: int) -> None:
        """Let one waiting attempt of each provider look for room, should a wake-up have been lost."""
        query = sa.select(attempt.c.provider).where(attempt.c.concurrency > 0, attempt.c.state == PARKED)
        for (provider,) in await self.database.look(query.distinct()):
            async with self.database.transaction() as connection:
                await self.lock_provider(connection, provider)
                await self.unpark(connection, provider, now)

    async def ending_holds(self, before: int) -> Sequence[Any]:
        """Return live jobs whose hold expires before then, and before their deadline."""
        query = (
            sa.select(job.c.id, job.c.hold_id, job.c.estimate, job.c.deadline_at)
            .where(
                job.c.hold_id != "",
                job.c.state.in_((QUEUED, RUNNING, CANCEL_REQUESTED)),
                job.c.hold_until < before,
                job.c.hold_until < job.c.deadline_at,
            )
            .order_by(job.c.hold_until)
            .limit(SWEEP)
        )
        return await self.database.look(query)

    async def held_until(self, job_id: str, until: int) -> None:
        """Note that a hold has been extended."""
        async with self.database.transaction() as connection:
            await connection.execute(sa.update(job).where(job.c.id == job_id).values(hold_until=until))


def _newest_claims(now: int) -> sa.Select[str, int]:
    """Ask how far workers have come in each queue."""
    return (
        sa.select(attempt.c.queue, sa.func.max(attempt.c.dispatched_at))
        .where(attempt.c.state == CLAIMED, attempt.c.lease_until >= now)
        .group_by(attempt.c.queue)
    )
