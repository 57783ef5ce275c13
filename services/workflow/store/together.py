"""Several attempts in one transaction: what workers claim and report at the same time.

Only what is simple is done here, and that is nearly all: everything else goes its own way, see attempts.py,
in a transaction of its own, so that what fails there does not undo what is known of the others here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from omnihub.workflow.v1.effect_pb2 import EffectResult
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.bulk import BulkInsert, Row
from services.common.db import Database
from services.common.outbox import Outbox
from services.workflow.domain.states import (
    ATTEMPT_FINAL,
    CANCEL_REQUESTED,
    CLAIMED,
    DISPATCHED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
)
from services.workflow.store.attempts import Attempts, Claim, success
from services.workflow.store.records import ENDED_ATTEMPT, ENDED_JOB, SECOND
from services.workflow.tables import attempt, effect_result, job


@dataclass(frozen=True, slots=True)
class Report:
    """What an attempt has made, by whom holds its fence."""

    attempt: Any
    fence: int
    result: EffectResult


class Together(Attempts):
    """The workers' side, for several attempts at once."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        super().__init__(database, outbox)
        self._new_results = BulkInsert(database, effect_result, returning="effect_key")

    async def claim_all(
        self, attempt_ids: Sequence[str], worker: str, lease_s: float, now: int
    ) -> list[Claim | None]:
        """Take those attempts that are simple, as `claim` does one; None stands for each of the others."""
        async with self.database.transaction() as connection:
            found = await self.lock_all(connection, attempt_ids, list(job.c))
            simple = [both for both in found if _simply_claimed(*both)]
            claims = await self._claim_simple(connection, simple, worker, lease_s, now)
        # Named twice: who comes second finds it taken.
        return [claims.pop(attempt_id, None) for attempt_id in attempt_ids]

    async def _claim_simple(
        self,
        connection: AsyncConnection,
        both: Sequence[tuple[Any, Any]],
        worker: str,
        lease_s: float,
        now: int,
    ) -> dict[str, Claim]:
        if not both:
            return {}
        values = {
            "state": CLAIMED,
            "worker": worker,
            "asked": True,
            "lease_until": now + round(lease_s * SECOND),
        }
        taken = [{"id": row.id, "fence": row.fence + 1, **values} for row, _ in both]
        begun = [
            (owner, {"state": RUNNING, "started_at": owner.started_at or now, "queue_position": None})
            for _, owner in both
            if owner.state == QUEUED
        ]
        await self.change_all(
            connection, begun, now, "attempt.claimed", worker, [self.updating(attempt, taken)]
        )
        return {
            row.id: Claim(row._replace(fence=row.fence + 1, **values), owner, row.fence + 1, bool(row.asked))
            for row, owner in both
        }

    async def complete_all(self, reports: Sequence[Report], now: int) -> list[bool]:
        """Keep what was made and end its attempts and jobs, as `complete` does for one, where that is simple.

        Tells of each whether that was done.
        """
        async with self.database.transaction() as connection:
            ids = [report.attempt.id for report in reports]
            both = await self.lock_all(connection, ids, ENDED_JOB, ENDED_ATTEMPT)
            found = {row.id: (row, owner) for row, owner in both}
            simple = {
                report.attempt.id: report
                for report in reports
                if report.attempt.id in found and _simply_completed(report, *found[report.attempt.id])
            }
            ended = await self._complete_simple(connection, simple, found, now)
        return [report.attempt.id in ended for report in reports]

    async def _complete_simple(
        self,
        connection: AsyncConnection,
        reports: Mapping[str, Report],
        found: Mapping[str, tuple[Any, Any]],
        now: int,
    ) -> set[str]:
        """Return the attempts that have ended; not those whose effect has a result already."""
        if not reports:
            return set()
        new = await self._kept(
            connection,
            [(each.attempt.effect_key, each.result.SerializeToString(), now) for each in reports.values()],
        )
        ended = [each for each in reports.values() if each.attempt.effect_key in new]
        ids = [each.attempt.id for each in ended]
        if ids:
            over = [{"id": attempt_id, "state": SUCCEEDED, "ended_at": now} for attempt_id in ids]
            changes = [(found[each.attempt.id][1], success(each.result)) for each in ended]
            await self.change_all(
                connection, changes, now, "job.succeeded", also=[self.updating(attempt, over)]
            )
        return set(ids)

    async def _kept(self, connection: AsyncConnection, results: Sequence[Row]) -> set[str]:
        """Keep results; return the effect keys that had none before."""
        if self.database.sqlite:
            kept = [dict(zip(("effect_key", "result", "created_at"), each, strict=True)) for each in results]
            insert = self.insert(effect_result).on_conflict_do_nothing().returning(effect_result.c.effect_key)
            return set((await connection.scalars(insert, kept)).all())
        (statement,) = self._new_results.of(results)
        return {key for (key,) in await connection.exec_driver_sql(*statement)}

    async def renew_all(self, claims: Sequence[Claim], lease_s: float, now: int) -> list[bool]:
        """Keep claims. Tells of each whether it is still held."""
        by_fence = sa.tuple_(attempt.c.id, attempt.c.fence).in_(
            [(claim.attempt.id, claim.fence) for claim in claims]
        )
        held = sa.select(attempt.c.id).where(by_fence, attempt.c.state == CLAIMED)
        # In the order in which everyone locks: reports of the same attempts may be under way.
        locked = held.order_by(attempt.c.job_id, attempt.c.id).with_for_update()
        values = {"lease_until": now + round(lease_s * SECOND)}
        statement = sa.update(attempt).where(attempt.c.id.in_(locked)).values(values)
        async with self.database.transaction() as connection:
            renewed = set(await connection.execute(statement.returning(attempt.c.id, attempt.c.fence)))
        return [(claim.attempt.id, claim.fence) in renewed for claim in claims]


def _simply_claimed(row: Any, owner: Any) -> bool:
    """Tell whether an attempt waits for any worker: no room to count, no race, no lost worker before."""
    wanted = owner.state in (QUEUED, RUNNING)
    return wanted and row.state == DISPATCHED and not row.concurrency and not owner.parallel


def _simply_completed(report: Report, row: Any, owner: Any) -> bool:
    """Tell whether a report ends the only attempt of a job that waits for it."""
    current = row.fence == report.fence and row.state not in ATTEMPT_FINAL and not row.concurrency
    return current and owner.attempts == 1 and owner.state in (RUNNING, CANCEL_REQUESTED)
