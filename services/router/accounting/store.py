"""The journal's tables. One row for each request: decision, usage and charge, written once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.router.v1.decision_pb2 import Decision

from services.common.db import Database

metadata = sa.MetaData()
journal = sa.Table(
    "journal",
    metadata,
    sa.Column("attempt_id", sa.String(64), primary_key=True),
    sa.Column("decision_id", sa.String(64), nullable=False, unique=True),
    sa.Column("organisation_id", sa.String(64), nullable=False),
    sa.Column("lease_id", sa.String(64), nullable=False),
    sa.Column("instance_id", sa.String(64), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("decision", sa.LargeBinary, nullable=False),
    sa.Column("charge", sa.LargeBinary, nullable=False),
)
# Records whose charge billing has not confirmed. Apart from them: a record is long and is written once.
unsettled = sa.Table("unsettled", metadata, sa.Column("attempt_id", sa.String(64), primary_key=True))

# Rows of one delete: the journal's writer must not wait long for its turn.
DELETE_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Record:
    """What is known about a request once it has ended."""

    attempt_id: str
    decision_id: str
    organisation_id: str
    lease_id: str
    at_ms: int
    decision: bytes
    """A serialised omnihub.router.v1.Decision."""
    charge: bytes
    """A serialised omnihub.billing.v1.Charge; empty when there is nothing to pay."""
    response: Mapping[str, Any] | None = None
    """A row of `stored_response`, when a provider keeps the answer."""


class JournalStore:
    """Reads the journal. Its writer is services.router.accounting.journal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def unsettled(
        self, limit: int, *, instance_id: str = "", before_ms: int | None = None, lease_id: str = ""
    ) -> list[Charge]:
        """Return charges that billing has not confirmed, oldest first."""
        # Ids are sorted by time; from the short table to the long one, whatever else is asked for.
        records = sa.join(unsettled, journal, unsettled.c.attempt_id == journal.c.attempt_id)
        query = sa.select(journal.c.charge).select_from(records).order_by(unsettled.c.attempt_id).limit(limit)
        if instance_id:
            query = query.where(journal.c.instance_id == instance_id)
        if before_ms is not None:
            query = query.where(journal.c.at < before_ms)
        if lease_id:
            query = query.where(journal.c.lease_id == lease_id)
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).scalars().all()
        return [Charge.FromString(row) for row in rows]

    async def decision(self, decision_id: str, organisation_id: str) -> Decision | None:
        """Return the decision of an organisation's request."""
        query = sa.select(journal.c.decision).where(
            journal.c.decision_id == decision_id, journal.c.organisation_id == organisation_id
        )
        async with self._database.reading() as connection:
            found = await connection.scalar(query)
        return None if found is None else Decision.FromString(found)

    async def delete_before(self, at_ms: int) -> None:
        """Delete settled records older than this."""
        owed = sa.select(unsettled.c.attempt_id).where(unsettled.c.attempt_id == journal.c.attempt_id)
        old = sa.select(journal.c.attempt_id).where(journal.c.at < at_ms, ~owed.exists())
        batch = sa.delete(journal).where(journal.c.attempt_id.in_(old.limit(DELETE_BATCH)))
        deleted = DELETE_BATCH
        while deleted == DELETE_BATCH:
            async with self._database.transaction() as connection:
                deleted = (await connection.execute(batch)).rowcount
