"""Attempts as workers see them: claim, accept, complete. A fence keeps out who has lost its claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from omnihub.workflow.v1.effect_pb2 import EffectResult
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.ids import new_id
from services.workflow.domain.retry import Failure, Retry, decide
from services.workflow.domain.routes import Route
from services.workflow.domain.states import (
    ACCEPTED,
    ATTEMPT_FINAL,
    CANCEL_REQUESTED,
    CANCELLED,
    CLAIMED,
    DISPATCHED,
    FAILED,
    FINAL,
    IDLE,
    PARKED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
)
from services.workflow.store.records import (
    SECOND,
    SETTLE_QUEUE,
    UNCLAIMED_S,
    Records,
    new_attempt,
    storable,
)
from services.workflow.tables import attempt, dead_letter, effect_result, job

# An attempt that has cost so many workers their lives gets no other.
MOST_CRASHES = 5
# A longer name is none; that what was begun is then not found costs less than to begin it again and again.
LONGEST_PROVIDER_ID = 512
ABANDONED = Failure("PROVIDER_TIMEOUT", "its provider has not ended it within the time after the job's end")
POISONED = Failure("JOB_POISONED", "every worker that took it up was lost before it had ended")


@dataclass(frozen=True, slots=True)
class Claim:
    """A worker's right to an attempt, as long as its lease lasts."""

    attempt: Any
    job: Any
    fence: int
    again: bool
    """Somebody may have asked the provider before, and did not come back."""

    @property
    def first(self) -> bool:
        """Tell whether nobody can have made anything under its effect key yet."""
        return self.fence == 1 and (self.attempt.number == 1 or bool(self.job.parallel))


class Attempts(Records):
    """The workers' side."""

    async def claim(self, attempt_id: str, worker: str, lease_s: float, now: int) -> Claim | None:
        """Take an attempt; None when it is taken, has ended, is not wanted, or its provider has no room."""
        async with self.database.transaction() as connection:
            both = await self.lock_both(connection, attempt_id)
            if both is None:
                return None
            row, owner = both
            lost = row.state == CLAIMED and row.lease_until < now
            if row.state not in IDLE and not lost:
                return None
            if owner.state in FINAL or owner.state == CANCEL_REQUESTED:
                await self._unwanted(connection, row, owner, now)
                return None
            if lost and row.crashes + 1 >= MOST_CRASHES:
                await self.poison(connection, row, owner, "delivery_limit", now)
                return None
            if not await self._room(connection, row, lost):
                return None
            values = {
                "state": CLAIMED,
                "fence": row.fence + 1,
                "worker": worker,
                "crashes": row.crashes + lost,
                # From here on its provider may be asked: who comes after a crash has to reckon with it.
                "asked": True,
                "lease_until": now + round(lease_s * SECOND),
            }
            await connection.execute(sa.update(attempt).where(attempt.c.id == row.id).values(values))
            if owner.state == QUEUED:
                started = {"state": RUNNING, "started_at": owner.started_at or now, "queue_position": None}
                await self.change(connection, owner, now, "attempt.claimed", worker, **started)
        return Claim(row._replace(**values), owner, row.fence + 1, bool(row.asked))

    async def _unwanted(self, connection: AsyncConnection, row: Any, owner: Any, now: int) -> None:
        await self._end(connection, row, CANCELLED, now)
        if owner.state == CANCEL_REQUESTED:
            await self._nothing_left(connection, owner, now)
        else:
            await self.outbox.append(connection, SETTLE_QUEUE, owner.id, now)

    async def _room(self, connection: AsyncConnection, row: Any, lost: bool) -> bool:
        """Tell whether its provider may run one more; without room the attempt is parked."""
        if not row.concurrency or lost:
            return True
        await self.lock_provider(connection, row.provider)
        running = sa.select(sa.func.count()).where(
            attempt.c.provider == row.provider,
            attempt.c.concurrency > 0,
            attempt.c.state.in_((CLAIMED, ACCEPTED)),
        )
        if (await connection.scalar(running) or 0) < row.concurrency:
            return True
        await connection.execute(sa.update(attempt).where(attempt.c.id == row.id).values(state=PARKED))
        return False

    async def put_back(self, claim: Claim, reason: str, due_at: int, asked: bool, now: int) -> bool:
        """Give a claim back, to be taken up again from `due_at`. Tells whether it counted.

        What its provider has accepted is not given back: it would be made again.
        """
        async with self.database.transaction() as connection:
            both = await self._current(connection, claim.attempt.id, claim.fence)
            if both is None or both[0].state != CLAIMED:
                return False
            row, owner = both
            values = {"state": DISPATCHED, "asked": asked, "lease_until": due_at + UNCLAIMED_S * SECOND}
            await self._leave(connection, row, now, values)
            await self.outbox.append(connection, row.queue, row.id, now, due_at)
            if owner.state == RUNNING and not owner.parallel:
                await self.change(connection, owner, now, "attempt.put_back", reason, state=QUEUED)
        return True

    async def accepted(self, claim: Claim, provider_job_id: str, poll_at: int, now: int) -> bool:
        """Note that the provider works on it: the message can be acknowledged. Tells whether it counted."""
        async with self.database.transaction() as connection:
            both = await self._current(connection, claim.attempt.id, claim.fence)
            if both is None or both[0].state != CLAIMED:
                return False
            row, owner = both
            values = {
                "state": ACCEPTED,
                "provider_job_id": storable(provider_job_id, LONGEST_PROVIDER_ID),
                "poll_at": poll_at,
                "lease_until": 0,
            }
            await connection.execute(sa.update(attempt).where(attempt.c.id == row.id).values(values))
            await self.change(connection, owner, now, "attempt.accepted", provider_job_id)
        return True

    async def progress(
        self, attempt_id: str, fraction: float | None, queue_position: int | None, now: int
    ) -> None:
        """Note how far a provider is, when that is news."""
        async with self.database.transaction() as connection:
            both = await self.lock_both(connection, attempt_id)
            if both is None or both[0].state in ATTEMPT_FINAL:
                return
            owner = both[1]
            if owner.state in FINAL or (owner.progress, owner.queue_position) == (fraction, queue_position):
                return
            values: dict[str, Any] = {"progress": fraction, "queue_position": queue_position}
            await self.change(connection, owner, now, "attempt.progress", **values)

    async def result_of(self, effect_key: str) -> EffectResult | None:
        """Return what was made under an effect key, if anything was."""
        async with self.database.reading() as connection:
            return await self._result(connection, effect_key)

    async def _result(self, connection: AsyncConnection, effect_key: str) -> EffectResult | None:
        query = sa.select(effect_result.c.result).where(effect_result.c.effect_key == effect_key)
        stored = await connection.scalar(query)
        return EffectResult.FromString(stored) if stored is not None else None

    async def complete(self, row: Any, fence: int, result: EffectResult, now: int) -> bool:
        """Keep what was made under its effect key, and end the attempt and its job with it.

        What is kept first counts, and is kept also for who has lost its claim. Tells whether it was this call
        that ended the job.
        """
        kept = {"effect_key": row.effect_key, "result": result.SerializeToString(), "created_at": now}
        statement = self.insert(effect_result).values(kept).on_conflict_do_nothing()
        async with self.database.transaction() as connection:
            # Locked before anything is written: others write in this order too.
            both = await self._current(connection, row.id, fence)
            new = await connection.scalar(statement.returning(effect_result.c.effect_key))
            if new is None:
                result = await self._result(connection, row.effect_key) or result
            if both is None:
                return False
            row, owner = both
            await self._end(connection, row, SUCCEEDED, now)
            if owner.state in FINAL:
                # Too late to count, and paid all the same: the provider was.
                await self.outbox.append(connection, SETTLE_QUEUE, owner.id, now)
                return False
            if owner.attempts > 1:
                await self._cancel_others(connection, row, now)
            await self.change(connection, owner, now, "job.succeeded", **success(result))
        return True

    async def fail(
        self, attempt_id: str, fence: int, failure: Failure, routes: Sequence[Route], now: int
    ) -> bool:
        """End an attempt badly: another follows, or the job fails. `routes` leads to each target.

        Tells whether it was this call that did.
        """
        async with self.database.transaction() as connection:
            both = await self._current(connection, attempt_id, fence)
            if both is None:
                return False
            row, owner = both
            state = CANCELLED if failure.reason == "CANCELLED" else FAILED
            await self._end(connection, row, state, now, failure)
            if owner.state in FINAL:
                # Its settlement has waited for this end.
                await self.outbox.append(connection, SETTLE_QUEUE, owner.id, now)
            else:
                await self._after_failure(connection, owner, row, failure, routes, now)
        return True

    async def give_up(self, attempt_id: str, fence: int, now: int) -> bool:
        """End an attempt whose job has ended and whose provider does not: what it may still make is not paid.

        Tells whether it was this call that did.
        """
        async with self.database.transaction() as connection:
            both = await self._current(connection, attempt_id, fence)
            if both is None or both[1].state not in FINAL:
                return False
            row, owner = both
            await self._end(connection, row, FAILED, now, ABANDONED)
            await self.change(connection, owner, now, "attempt.abandoned", row.provider_job_id)
            # Its settlement has waited for this end.
            await self.outbox.append(connection, SETTLE_QUEUE, owner.id, now)
        return True

    async def _after_failure(
        self,
        connection: AsyncConnection,
        owner: Any,
        row: Any,
        failure: Failure,
        routes: Sequence[Route],
        now: int,
    ) -> None:
        attempts = await self.attempts_of(connection, owner.id)
        if owner.state == CANCEL_REQUESTED or failure.reason == "CANCELLED":
            await self._nothing_left(connection, owner, now)
            return
        if any(other.state not in ATTEMPT_FINAL for other in attempts):
            return  # A race goes on without this one.
        at_target = sum(other.target_index == row.target_index for other in attempts)
        following = decide(failure, row.target_index, len(routes), at_target, row.id)
        if following is None or owner.parallel:
            await self._job_failed(connection, owner, failure, now)
            return
        await self._follow(connection, owner, row, following, failure, routes, len(attempts) + 1, now)

    async def _follow(
        self,
        connection: AsyncConnection,
        owner: Any,
        row: Any,
        following: Retry,
        failure: Failure,
        routes: Sequence[Route],
        number: int,
        now: int,
    ) -> None:
        """Begin the next attempt. The same target is asked for the same effect, which it may have made."""
        same = following.target_index == row.target_index
        again = new_attempt(
            owner.id,
            number,
            following.target_index,
            routes[following.target_index],
            now,
            effect_key=row.effect_key if same else "",
            due_at=now + round(following.after_s * SECOND),
            asked=same and failure.maybe_accepted,
        )
        await self.dispatch(connection, [again], now)
        values: dict[str, Any] = {"state": QUEUED, "attempts": number}
        if failure.maybe_accepted and not same:
            values["maybe_double_charge"] = True
        if owner.state == QUEUED:
            del values["state"]
        await self.change(connection, owner, now, "attempt.failed", failure.reason, **values)

    async def _job_failed(self, connection: AsyncConnection, owner: Any, failure: Failure, now: int) -> None:
        values = {
            "state": FAILED,
            "error_reason": failure.reason,
            "error_message": storable(failure.message, 2000),
            "error_retryable": failure.retryable,
        }
        await self.change(connection, owner, now, "job.failed", failure.reason, **values)

    async def poison(self, connection: AsyncConnection, row: Any, owner: Any, reason: str, now: int) -> None:
        """End an attempt that no worker survives, with its job, and keep a letter about it."""
        await self.letter(connection, row.queue, row.id, reason, now)
        await self._end(connection, row, FAILED, now, POISONED)
        if owner.state not in FINAL:
            await self._job_failed(connection, owner, POISONED, now)
        else:
            await self.outbox.append(connection, SETTLE_QUEUE, owner.id, now)

    async def letter(
        self,
        connection: AsyncConnection,
        queue: str,
        subject_id: str,
        reason: str,
        now: int,
        redriven_at: int = 0,
    ) -> None:
        """Keep a dead letter."""
        row = {
            "id": new_id("dead"),
            "queue": queue,
            "subject_id": subject_id,
            "reason": reason,
            "at": now,
            "redriven_at": redriven_at,
        }
        await connection.execute(sa.insert(dead_letter), row)

    async def results_of(self, job_ids: Sequence[str]) -> list[tuple[str, str, EffectResult]]:
        """Return what the ended attempts of jobs made: job, attempt, result."""
        query = (
            sa.select(attempt.c.job_id, attempt.c.id, effect_result.c.result)
            .join(effect_result, effect_result.c.effect_key == attempt.c.effect_key)
            .where(attempt.c.job_id.in_(job_ids), attempt.c.state == SUCCEEDED)
            .order_by(attempt.c.job_id, attempt.c.number)
        )
        async with self.database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return [(row.job_id, row.id, EffectResult.FromString(row.result)) for row in rows]

    async def running(self, job_ids: Sequence[str]) -> set[str]:
        """Return those of some jobs that have attempts which may still bring something."""
        query = sa.select(attempt.c.job_id).where(
            attempt.c.job_id.in_(job_ids), attempt.c.state.not_in(sorted(ATTEMPT_FINAL))
        )
        async with self.database.reading() as connection:
            return set((await connection.scalars(query)).all())

    async def provider_jobs_since(self, since: int) -> list[str]:
        """Return the providers' ids of what attempts have in work now, or have had since then."""
        query = sa.select(attempt.c.provider_job_id).where(
            attempt.c.provider_job_id != "",
            sa.or_(attempt.c.ended_at == 0, attempt.c.ended_at >= since),
        )
        async with self.database.reading() as connection:
            return list((await connection.scalars(query)).all())

    async def flag_maybe_double(self, job_id: str) -> None:
        """Note that a provider may have been asked, and paid, twice."""
        async with self.database.transaction() as connection:
            await connection.execute(
                sa.update(job).where(job.c.id == job_id).values(maybe_double_charge=True)
            )

    async def _current(
        self, connection: AsyncConnection, attempt_id: str, fence: int
    ) -> tuple[Any, Any] | None:
        """Return an attempt and its job, locked, when the attempt has not ended and the fence is its own."""
        both = await self.lock_both(connection, attempt_id)
        if both is None or both[0].fence != fence or both[0].state in ATTEMPT_FINAL:
            return None
        return both

    async def _end(
        self, connection: AsyncConnection, row: Any, state: str, now: int, failure: Failure | None = None
    ) -> None:
        values: dict[str, Any] = {"state": state, "ended_at": now}
        if failure is not None:
            values |= {"reason": failure.reason, "message": storable(failure.message, 2000)}
        await self._leave(connection, row, now, values)

    async def _leave(self, connection: AsyncConnection, row: Any, now: int, values: dict[str, Any]) -> None:
        """Change an attempt that its provider does not run any more: whoever waits there may begin."""
        if row.concurrency:
            await self.lock_provider(connection, row.provider)
        await connection.execute(sa.update(attempt).where(attempt.c.id == row.id).values(values))
        if row.concurrency and row.state in (CLAIMED, ACCEPTED):
            await self.unpark(connection, row.provider, now)

    async def _cancel_others(self, connection: AsyncConnection, winner: Any, now: int) -> None:
        """Let the losers of a race be cancelled: those that wait for their provider at once."""
        others = attempt.c.job_id == winner.job_id, attempt.c.id != winner.id
        idle = sa.update(attempt).where(*others, attempt.c.state.in_(IDLE))
        await connection.execute(idle.values(state=CANCELLED, ended_at=now))
        waiting = sa.update(attempt).where(*others, attempt.c.state == ACCEPTED)
        await connection.execute(waiting.values(poll_at=now))

    async def _nothing_left(self, connection: AsyncConnection, owner: Any, now: int) -> None:
        """End a job that is to stop, once none of its attempts runs any more."""
        attempts = await self.attempts_of(connection, owner.id)
        if all(each.state in ATTEMPT_FINAL for each in attempts):
            await self.change(connection, owner, now, "job.cancelled", state=CANCELLED)


def success(result: EffectResult) -> dict[str, Any]:
    """Return what changes in a job that has made something."""
    return {
        "state": SUCCEEDED,
        "result": result.SerializeToString(),
        "cost": result.charge.amount_nano_credits,
        "model_used": result.model_used,
        "progress": 1.0,
        "queue_position": None,
    }
