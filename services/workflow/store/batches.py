"""Batches: one parent, up to a hundred items, of which only some run at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.workflow.domain.routes import Route
from services.workflow.domain.states import CANCEL_REQUESTED, CANCELLED, FAILED, FINAL, QUEUED, SUCCEEDED
from services.workflow.store.jobs import Jobs, NewJob, row_of
from services.workflow.store.records import first_attempts
from services.workflow.tables import job, job_event

RoutesOf = Callable[[Any], Sequence[Route]]
"""Returns the ways at which an item's attempts begin."""


class Batches(Jobs):
    """Begins batches, lets their items follow one another, ends them."""

    async def create_batch(self, parent: NewJob, items: Sequence[NewJob], now: int) -> tuple[Any, bool]:
        """Begin a batch with the items that are not `waiting`; return its row and whether it is new."""
        async with self.database.transaction() as connection:
            row, created = await self.create_in(connection, parent, now)
            if not created:
                return row, False
            await connection.execute(sa.insert(job), [row_of(item, now) for item in items])
            events = [
                {"job_id": item.id, "seq": 1, "type": "job.created", "detail": "", "at": now}
                for item in items
            ]
            await connection.execute(sa.insert(job_event), events)
            begun = [item for item in items if not item.waiting]
            first = [each for item in begun for each in first_attempts(item.id, item.routes, now)]
            await self.dispatch(connection, first, now)
            await self.change(connection, row, now, "batch.begun", state="running", started_at=now)
        return await self.job_of(parent.id), True

    async def counts(self, parent_ids: Sequence[str]) -> Mapping[str, Mapping[str, int]]:
        """Return how many items of each batch are in each state."""
        query = (
            sa.select(job.c.parent_id, job.c.state, sa.func.count().label("items"))
            .where(job.c.parent_id.in_(parent_ids))
            .group_by(job.c.parent_id, job.c.state)
        )
        found: dict[str, dict[str, int]] = {parent_id: {} for parent_id in parent_ids}
        async with self.database.reading() as connection:
            for row in (await connection.execute(query)).all():
                found[row.parent_id][row.state] = row.items
        return found

    async def items_of(self, parent_id: str) -> Sequence[Any]:
        """Return what a batch's settlement looks at: state, cost and whether it is settled, of each item."""
        query = sa.select(job.c.state, job.c.cost, job.c.settled).where(job.c.parent_id == parent_id)
        async with self.database.reading() as connection:
            return (await connection.execute(query)).all()

    async def advance(self, parent_id: str, routes_of: RoutesOf, now: int) -> None:
        """Begin as many items as there is room for, and end the batch after its last one. Can be repeated."""
        async with self.database.transaction() as connection:
            parent = await self.lock_job(connection, parent_id)
            if parent is None or parent.state in FINAL:
                return
            query = sa.select(job.c.id, job.c.state, job.c.attempts, job.c.error_reason)
            query = query.where(job.c.parent_id == parent_id).order_by(job.c.item_index)
            items = (await connection.execute(query)).all()
            live = [item for item in items if item.state not in FINAL]
            waiting = [item for item in live if item.state == QUEUED and not item.attempts]
            room = parent.max_concurrency - (len(live) - len(waiting))
            for item in waiting[: max(0, room)] if parent.state != CANCEL_REQUESTED else ():
                await self._begin(connection, item.id, routes_of, now)
            if not live:
                await self._finish(connection, parent, items, now)
            elif ended := len(items) - len(live):
                await self.change(connection, parent, now, "batch.advanced", progress=ended / len(items))

    async def _begin(self, connection: AsyncConnection, item_id: str, routes_of: RoutesOf, now: int) -> None:
        query = sa.select(job).where(job.c.id == item_id).with_for_update()
        item = (await connection.execute(query)).one()
        if item.state != QUEUED or item.attempts:
            return
        first = first_attempts(item.id, routes_of(item), now)
        await self.dispatch(connection, first, now)
        await self.change(connection, item, now, "job.dispatched", attempts=len(first))

    async def _finish(self, connection: AsyncConnection, parent: Any, items: Sequence[Any], now: int) -> None:
        """A batch has succeeded when any item has; which have not, the items tell."""
        states = [item.state for item in items]
        if parent.state == CANCEL_REQUESTED or all(state == CANCELLED for state in states):
            await self.change(connection, parent, now, "job.cancelled", state=CANCELLED, progress=1.0)
        elif SUCCEEDED in states:
            await self.change(connection, parent, now, "job.succeeded", state=SUCCEEDED, progress=1.0)
        else:
            reason = next((item.error_reason for item in items if item.error_reason), "CANCELLED")
            values = {"error_reason": reason, "error_message": "no item succeeded; each tells why"}
            await self.change(connection, parent, now, "job.failed", reason, state=FAILED, **values)
