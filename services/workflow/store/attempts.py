"""Attempts as workers see them: claim, accept, complete. A fence keeps out who has lost its claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from omnihub.workflow.v1.effect_pb2 import EffectResult
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.ids import new_id
from services.workflow.domain.retry import Failure, decide
from services.workflow.domain.states import (
    ACCEPTED,
    ATTEMPT_FINAL,
    CANCEL_REQUESTED,
    CANCELLED,
    CLAIMED,
    DISPATCHED,
    FAILED,
    FINAL,
    QUEUED,
    RUNNING,
    SUCCEEDED,
)
from services.workflow.store.records import SETTLE_QUEUE, Records
from services.workflow.tables import attempt, dead_letter, effect_result, job, webhook_event

SECOND = 1_000_000
# An attempt whose message has not brought a worker by then gets another message.
UNCLAIMED_S = 30
SWEEP = 200


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to an attempt, as long as its lease lasts."""

    attempt: Any
    job: Any
    fence: int

    @property
    def again(self) -> bool:
        """Tell whether somebody has asked the provider before and did not come back."""
        return bool(self.attempt.asked)


class Attempts(Records):
    """The workers' side."""

    async def claim(self, attempt_id: str, worker: str, lease_s: float, now: int) -> Claim | None:
        """Take an attempt; None when it is taken, has ended, or is no longer wanted."""
        free = sa.or_(
            attempt.c.state == DISPATCHED,
            sa.and_(attempt.c.state == CLAIMED, attempt.c.lease_until < now),
        )
        statement = (
            sa.update(attempt)
            .where(attempt.c.id == attempt_id, free)
            .values(
                state=CLAIMED,
                fence=attempt.c.fence + 1,
                worker=worker,
                lease_until=now + round(lease_s * SECOND),
            )
            .returning(*attempt.c)
        )
        async with self.database.transaction() as connection:
            job_id = await connection.scalar(sa.select(attempt.c.job_id).where(attempt.c.id == attempt_id))
            if job_id is None:
                return None
            owner = await self.lock_job(connection, job_id)
            row = (await connection.execute(statement)).one_or_none()
            if row is None:
                return None
            if owner.state in FINAL or owner.state == CANCEL_REQUESTED:
                await self._end(connection, row, CANCELLED, now)
                if owner.state == CANCEL_REQUESTED:
                    await self._nothing_left(connection, owner, now)
                return None
            if owner.state == QUEUED:
                values = {"state": RUNNING, "started_at": owner.started_at or now, "queue_position": None}
                await self.change(connection, owner, now, "attempt.claimed", worker, **values)
        return Claim(row, owner, row.fence)

    async def renew(self, claim: Claim, lease_s: float, now: int) -> bool:
        """Keep a claim. Tells whether it is still held."""
        return await self._mine(claim, lease_until=now + round(lease_s * SECOND))

    async def asking(self, claim: Claim) -> bool:
        """Note that the provider is about to be asked. Tells whether the claim is still held."""
        return await self._mine(claim, asked=True)

    async def _mine(self, claim: Claim, **values: Any) -> bool:
        held = (
            attempt.c.id == claim.attempt.id,
            attempt.c.fence == claim.fence,
            attempt.c.state == CLAIMED,
        )
        statement = sa.update(attempt).where(*held).values(values).returning(attempt.c.id)
        async with self.database.transaction() as connection:
            return (await connection.scalar(statement)) is not None

    async def accepted(self, claim: Claim, provider_job_id: str, poll_at: int, now: int) -> bool:
        """Note that the provider works on it: the message can be acknowledged. Tells whether it counted."""
        async with self.database.transaction() as connection:
            owner = await self.lock_job(connection, claim.job.id)
            row = await self._current(connection, claim.attempt.id)
            if row is None or row.fence != claim.fence or row.state != CLAIMED:
                return False
            values = {"state": ACCEPTED, "provider_job_id": provider_job_id, "poll_at": poll_at}
            await connection.execute(sa.update(attempt).where(attempt.c.id == row.id).values(values))
            await self.change(connection, owner, now, "attempt.accepted", provider_job_id)
        return True

    async def progress(
        self, attempt_id: str, fraction: float | None, queue_position: int | None, now: int
    ) -> None:
        """Note how far a provider is, when that is news."""
        async with self.database.transaction() as connection:
            row = await self._current(connection, attempt_id)
            if row is None or row.state in ATTEMPT_FINAL:
                return
            owner = await self.lock_job(connection, row.job_id)
            if owner.state in FINAL or (owner.progress, owner.queue_position) == (fraction, queue_position):
                return
            values: dict[str, Any] = {"progress": fraction, "queue_position": queue_position}
            await self.change(connection, owner, now, "attempt.progress", **values)

    async def result_of(self, effect_key: str) -> EffectResult | None:
        """Return what was made under an effect key, if anything was."""
        query = sa.select(effect_result.c.result).where(effect_result.c.effect_key == effect_key)
        async with self.database.reading() as connection:
            stored = await connection.scalar(query)
        return EffectResult.FromString(stored) if stored is not None else None

    async def store_result(self, effect_key: str, result: EffectResult, now: int) -> EffectResult:
        """Keep what was made, before it is reported. Returns what is kept: the first one counts."""
        row = {"effect_key": effect_key, "result": result.SerializeToString(), "created_at": now}
        async with self.database.transaction() as connection:
            await connection.execute(self.insert(effect_result).values(row).on_conflict_do_nothing())
        return await self.result_of(effect_key) or result

    async def complete(self, attempt_id: str, fence: int, result: EffectResult, now: int) -> bool:
        """End an attempt, and its job, with what was made. Tells whether it was this call that did."""
        async with self.database.transaction() as connection:
            row = await self._current(connection, attempt_id)
            if row is None:
                return False
            owner = await self.lock_job(connection, row.job_id)
            row = await self._current(connection, attempt_id)
            if row.fence != fence or row.state in ATTEMPT_FINAL:
                return False
            await self._end(connection, row, SUCCEEDED, now)
            if owner.state in FINAL:
                # Too late to count, and paid all the same: the provider was.
                await self.outbox.append(connection, SETTLE_QUEUE, owner.id, now)
                return False
            values: dict[str, Any] = {
                "state": SUCCEEDED,
                "result": result.SerializeToString(),
                "cost": result.amount_nano_credits,
                "model_used": result.model_used,
                "progress": 1.0,
                "queue_position": None,
            }
            await self._cancel_others(connection, row, now)
            await self.change(connection, owner, now, "job.succeeded", **values)
        return True

    async def fail(
        self, attempt_id: str, fence: int, failure: Failure, targets: Sequence[str], now: int
    ) -> bool:
        """End an attempt badly: another follows, or the job fails. `targets` holds each target's queue.

        Tells whether it was this call that did.
        """
        async with self.database.transaction() as connection:
            row = await self._current(connection, attempt_id)
            if row is None:
                return False
            owner = await self.lock_job(connection, row.job_id)
            row = await self._current(connection, attempt_id)
            if row.fence != fence or row.state in ATTEMPT_FINAL:
                return False
            state = CANCELLED if failure.reason == "CANCELLED" else FAILED
            await self._end(connection, row, state, now, failure)
            if owner.state not in FINAL:
                await self._after_failure(connection, owner, row, failure, targets, now)
        return True

    async def _after_failure(
        self,
        connection: AsyncConnection,
        owner: Any,
        row: Any,
        failure: Failure,
        targets: Sequence[str],
        now: int,
    ) -> None:
        attempts = await self.attempts_of(connection, owner.id)
        if owner.state == CANCEL_REQUESTED or failure.reason == "CANCELLED":
            await self._nothing_left(connection, owner, now)
            return
        if any(other.state not in ATTEMPT_FINAL for other in attempts):
            return  # A race goes on without this one.
        at_target = sum(other.target_index == row.target_index for other in attempts)
        following = decide(failure, row.target_index, len(targets), at_target, row.id)
        if following is None or owner.parallel:
            values = {
                "state": FAILED,
                "error_reason": failure.reason,
                "error_message": failure.message[:2000],
                "error_retryable": failure.retryable,
            }
            await self.change(connection, owner, now, "job.failed", failure.reason, **values)
            return
        number = len(attempts) + 1
        # The same target is asked for the same effect: what it may have made already is looked for.
        same = following.target_index == row.target_index
        await self.dispatch(
            connection,
            new_id("att"),
            owner.id,
            number,
            following.target_index,
            targets[following.target_index],
            row.effect_key if same else new_id("eff"),
            now,
            now + round(following.after_s * SECOND),
            asked=same and failure.doubtful,
        )
        await self.change(
            connection, owner, now, "attempt.failed", failure.reason, state=QUEUED, attempts=number
        )

    async def results_of(self, job_id: str) -> list[tuple[str, EffectResult]]:
        """Return what the ended attempts of a job made, by attempt; and nothing for the others."""
        query = (
            sa.select(attempt.c.id, effect_result.c.result)
            .join(effect_result, effect_result.c.effect_key == attempt.c.effect_key)
            .where(attempt.c.job_id == job_id, attempt.c.state == SUCCEEDED)
            .order_by(attempt.c.number)
        )
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [(row.id, EffectResult.FromString(row.result)) for row in rows]

    async def running(self, job_id: str) -> bool:
        """Tell whether an attempt of a job may still bring something."""
        query = sa.select(attempt.c.id).where(
            attempt.c.job_id == job_id, attempt.c.state.not_in(sorted(ATTEMPT_FINAL))
        )
        async with self.database.reading() as connection:
            return (await connection.scalar(query.limit(1))) is not None

    async def provider_jobs_since(self, since: int) -> list[str]:
        """Return the providers' ids of what attempts have begun since then."""
        query = sa.select(attempt.c.provider_job_id).where(
            attempt.c.dispatched_at >= since, attempt.c.provider_job_id != ""
        )
        async with self.database.reading() as connection:
            return list((await connection.scalars(query)).all())

    async def flag_maybe_double(self, job_id: str) -> None:
        """Note that a provider may have been asked, and paid, twice."""
        async with self.database.transaction() as connection:
            await connection.execute(
                sa.update(job).where(job.c.id == job_id).values(maybe_double_charge=True)
            )

    async def due_polls(self, now: int, hide_s: float) -> list[tuple[Any, Any]]:
        """Take attempts whose provider is to be asked how far it is. Replicas do not get the same ones."""
        due = sa.select(attempt.c.id).where(attempt.c.state == ACCEPTED, attempt.c.poll_at <= now)
        async with self.database.reading() as connection:
            if (await connection.execute(due.limit(1))).one_or_none() is None:
                return []
        async with self.database.transaction() as connection:
            locked = due.order_by(attempt.c.poll_at).limit(SWEEP).with_for_update(skip_locked=True)
            ids = (await connection.scalars(locked)).all()
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
            await connection.execute(sa.update(attempt).where(*waiting).values(poll_at=at))

    async def cancel_sent(self, attempt_id: str) -> None:
        """Note that a provider has been asked to stop."""
        async with self.database.transaction() as connection:
            await connection.execute(
                sa.update(attempt).where(attempt.c.id == attempt_id).values(cancel_sent=True)
            )

    async def by_provider_job(self, provider_job_id: str) -> list[tuple[Any, Any]]:
        """Return the attempts that a provider knows by this id, with their jobs."""
        query = sa.select(attempt).where(attempt.c.provider_job_id == provider_job_id)
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).all()
            return [
                (row, (await connection.execute(sa.select(job).where(job.c.id == row.job_id))).one())
                for row in rows
            ]

    async def webhook_is_new(self, provider: str, event_id: str, now: int) -> bool:
        """Note a notification. Tells whether it is the first of its id."""
        row = {"provider": provider, "event_id": event_id, "at": now}
        statement = self.insert(webhook_event).values(row).on_conflict_do_nothing()
        async with self.database.transaction() as connection:
            taken = await connection.execute(statement.returning(webhook_event.c.event_id))
            return taken.one_or_none() is not None

    async def bring_back_lost(self, now: int) -> int:
        """Send a message again for attempts that nobody came for or whose worker is gone; return how many."""
        lost = sa.or_(
            sa.and_(attempt.c.state == DISPATCHED, attempt.c.dispatched_at < now - UNCLAIMED_S * SECOND),
            sa.and_(attempt.c.state == CLAIMED, attempt.c.lease_until < now),
        )
        query = sa.select(attempt.c.id, attempt.c.queue).where(lost)
        async with self.database.reading() as connection:
            if (await connection.execute(query.limit(1))).one_or_none() is None:
                return 0
        async with self.database.transaction() as connection:
            rows = (await connection.execute(query.limit(SWEEP).with_for_update(skip_locked=True))).all()
            # Not again at the next look: by then the message has had its time.
            await connection.execute(
                sa.update(attempt)
                .where(attempt.c.id.in_([row.id for row in rows]), attempt.c.state == DISPATCHED)
                .values(dispatched_at=now)
            )
            for row in rows:
                await self.outbox.append(connection, row.queue, row.id, now)
        return len(rows)

    async def bury(self, queue: str, subject_id: str, reason: str, now: int) -> None:
        """Keep a message that could not be worked off, and fail what it was about."""
        row = {
            "id": new_id("dead"),
            "queue": queue,
            "subject_id": subject_id,
            "reason": reason,
            "at": now,
            "redriven_at": 0,
        }
        async with self.database.transaction() as connection:
            await connection.execute(sa.insert(dead_letter), row)

    async def _current(self, connection: AsyncConnection, attempt_id: str) -> Any:
        return (await connection.execute(sa.select(attempt).where(attempt.c.id == attempt_id))).one_or_none()

    async def _end(
        self, connection: AsyncConnection, row: Any, state: str, now: int, failure: Failure | None = None
    ) -> None:
        values: dict[str, Any] = {"state": state, "ended_at": now}
        if failure is not None:
            values |= {"reason": failure.reason, "message": failure.message[:2000]}
        await connection.execute(sa.update(attempt).where(attempt.c.id == row.id).values(values))

    async def _cancel_others(self, connection: AsyncConnection, winner: Any, now: int) -> None:
        """Let the losers of a race be cancelled: those that wait for their provider at once."""
        others = attempt.c.job_id == winner.job_id, attempt.c.id != winner.id
        dispatched = sa.update(attempt).where(*others, attempt.c.state == DISPATCHED)
        await connection.execute(dispatched.values(state=CANCELLED, ended_at=now))
        waiting = sa.update(attempt).where(*others, attempt.c.state == ACCEPTED)
        await connection.execute(waiting.values(poll_at=now))

    async def _nothing_left(self, connection: AsyncConnection, owner: Any, now: int) -> None:
        """End a job that is to stop, once none of its attempts runs any more."""
        attempts = await self.attempts_of(connection, owner.id)
        if all(each.state in ATTEMPT_FINAL for each in attempts):
            await self.change(connection, owner, now, "job.cancelled", state=CANCELLED)
