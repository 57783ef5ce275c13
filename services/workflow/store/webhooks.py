"""Addresses of users' own servers, and what is delivered to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from services.common.db import Database
from services.common.ids import new_id
from services.common.outbox import Outbox
from services.workflow.domain.deliveries import DEAD, DELIVERED, PENDING
from services.workflow.material_tables import webhook_delivery, webhook_endpoint
from services.workflow.store.records import NOTIFY_QUEUE, storable
from services.workflow.tables import dead_letter


class Webhooks:
    """Reads and writes them. A delivery's next attempt is a message that is due then."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox

    def _insert(self, table: sa.Table) -> Any:
        return (sqlite.insert if self._database.sqlite else postgresql.insert)(table)

    async def create(self, row: dict[str, Any]) -> tuple[Any, bool]:
        """Add an address; return its row, or that of the one this key added, and whether it is new."""
        statement = self._insert(webhook_endpoint).values(row).on_conflict_do_nothing()
        async with self._database.transaction() as connection:
            created = (await connection.execute(statement.returning(*webhook_endpoint.c))).one_or_none()
            if created is not None:
                return created, True
            known = sa.select(webhook_endpoint).where(
                webhook_endpoint.c.organisation_id == row["organisation_id"],
                webhook_endpoint.c.idempotency_key == row["idempotency_key"],
            )
            return (await connection.execute(known)).one(), False

    async def find(self, endpoint_id: str) -> Any:
        """Return an address's row, or None."""
        query = sa.select(webhook_endpoint).where(webhook_endpoint.c.id == endpoint_id)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).one_or_none()

    async def page(self, organisation_id: str, limit: int, before: tuple[int, str] | None) -> Sequence[Any]:
        """Return addresses, the newest first."""
        table = webhook_endpoint
        return await self._page(table, table.c.organisation_id == organisation_id, limit, before)

    async def deliveries(self, endpoint_id: str, limit: int, before: tuple[int, str] | None) -> Sequence[Any]:
        """Return deliveries to an address, the newest first."""
        table = webhook_delivery
        return await self._page(table, table.c.endpoint_id == endpoint_id, limit, before)

    async def _page(
        self, table: sa.Table, which: Any, limit: int, before: tuple[int, str] | None
    ) -> Sequence[Any]:
        query = sa.select(table).where(which)
        if before is not None:
            query = query.where(
                sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(*map(sa.literal, before))
            )
        query = query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).all()

    async def change(self, endpoint_id: str, **values: Any) -> None:
        """Change an address."""
        which = webhook_endpoint.c.id == endpoint_id
        async with self._database.transaction() as connection:
            await connection.execute(sa.update(webhook_endpoint).where(which).values(values))

    async def remove(self, endpoint_id: str) -> None:
        """Remove an address and what was delivered to it."""
        async with self._database.transaction() as connection:
            of_it = webhook_delivery.c.endpoint_id == endpoint_id
            await connection.execute(sa.delete(webhook_delivery).where(of_it))
            await connection.execute(sa.delete(webhook_endpoint).where(webhook_endpoint.c.id == endpoint_id))

    async def begin(self, endpoint_id: str, event: str, job_id: str, body: bytes, now: int) -> str:
        """Return the id of the delivery of an event of a job: there is one, however often it begins."""
        row = {
            "id": new_id("msg"),
            "endpoint_id": endpoint_id,
            "event": event,
            "job_id": job_id,
            "body": body,
            "state": PENDING,
            "attempts": 0,
            "http_status": 0,
            "problem": "",
            "created_at": now,
            "next_attempt_at": now,
        }
        known = sa.select(webhook_delivery.c.id).where(
            webhook_delivery.c.job_id == job_id, webhook_delivery.c.event == event
        )
        async with self._database.transaction() as connection:
            await connection.execute(self._insert(webhook_delivery).values(row).on_conflict_do_nothing())
            return str(await connection.scalar(known))

    async def delivery(self, delivery_id: str) -> Any:
        """Return a delivery's row, or None."""
        query = sa.select(webhook_delivery).where(webhook_delivery.c.id == delivery_id)
        async with self._database.reading() as connection:
            return (await connection.execute(query)).one_or_none()

    async def delivered(self, row: Any, http_status: int) -> None:
        """Note that a receiver has taken it in."""
        values = {"state": DELIVERED, "http_status": http_status, "problem": "", "next_attempt_at": 0}
        async with self._database.transaction() as connection:
            await connection.execute(_attempted(row).values(values))

    async def failed(self, row: Any, http_status: int, problem: str, again_at: int, now: int) -> None:
        """Note a failed attempt, and when the next one is due; 0 for none: it is dead."""
        values = {
            "state": PENDING if again_at else DEAD,
            "http_status": http_status,
            "problem": storable(problem, 1000),
            "next_attempt_at": again_at,
        }
        async with self._database.transaction() as connection:
            counted = _attempted(row).where(webhook_delivery.c.attempts == row.attempts)
            done = await connection.execute(counted.values(values).returning(webhook_delivery.c.id))
            if done.one_or_none() is None:
                return  # The same message twice: the other one has written what follows.
            if again_at:
                await self._outbox.append(connection, NOTIFY_QUEUE, row.id, now, again_at)
                return
            letter = {
                "id": new_id("dead"),
                "queue": NOTIFY_QUEUE,
                "subject_id": row.id,
                "reason": "delivery_limit",
                "at": now,
                "redriven_at": 0,
            }
            await connection.execute(sa.insert(dead_letter), letter)


def _attempted(row: Any) -> Any:
    update = sa.update(webhook_delivery).where(webhook_delivery.c.id == row.id)
    return update.values(attempts=row.attempts + 1)
