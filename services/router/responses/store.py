"""Whose answer an id of a stored response names, who keeps it, and what of it is still to be paid.

Rows are written by the journal, in the transaction that makes the answer's record durable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.router.v1.decision_pb2 import Decision
from sqlalchemy.dialects import postgresql, sqlite

from services.common.db import Database
from services.credits.money import format_nano
from services.router.accounting.store import journal, metadata, unsettled

stored_response = sa.Table(
    "stored_response",
    metadata,
    sa.Column("organisation_id", sa.String(64), primary_key=True),
    sa.Column("response_id", sa.String(256), primary_key=True),
    sa.Column("decision_id", sa.String(64), nullable=False),
    # A provider that counts its answers may give an id again.
    sa.Column("attempt_id", sa.String(64), primary_key=True),
    sa.Column("target", sa.String(512), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("pending", sa.Boolean, nullable=False),
    sa.Column("polled_at", sa.BigInteger, nullable=False),
    sa.Column("charge", sa.LargeBinary, nullable=False),
    sa.Column("price", sa.LargeBinary, nullable=False),
    sa.Column("margin", sa.LargeBinary, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("baseline", sa.LargeBinary, nullable=False),
    sa.Column("baseline_margin", sa.LargeBinary, nullable=False),
)

# Rows of one delete: the journal's writer must not wait long for its turn.
DELETE_BATCH = 1000


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response that a provider keeps."""

    organisation_id: str
    response_id: str
    decision_id: str
    attempt_id: str
    target: str
    """`provider/model` that answered."""
    at: int
    """Milliseconds since 1970."""
    pending: bool = False
    """It is made in the background, and not yet paid."""
    polled_at: int = 0
    """When its provider was last asked about it, in milliseconds since 1970."""
    charge: bytes = b""
    """Of a pending one: a serialised Charge with what is known of it; its usage is the estimated input."""
    price: bytes = b""
    """Of a pending one: the serialised Price it was admitted at."""
    margin: bytes = b""
    """Of a pending one: the serialised Margin on it; empty without one."""
    reserved: int = 0
    """Of a pending one: nano-credits held for it."""

    @property
    def provider(self) -> str:
        """Return the name of the provider."""
        return self.target.partition("/")[0]

    baseline: bytes = b""
    """Of a pending one: the serialised Price of what it is compared with, if it is with anything."""
    baseline_margin: bytes = b""
    """Of a pending one: the serialised Margin of that."""

    def row(self) -> dict[str, Any]:
        """Return it as a row of the table."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class ResponseStore:
    """Reads the table, and ends what is pending."""

    def __init__(
        self, database: Database, instance_id: str, on_charge: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._insert: Any = sqlite.insert if database.sqlite else postgresql.insert
        self._instance_id = instance_id
        self._on_charge = on_charge
        """Told when a charge was put into the journal's table that its writer knows nothing of."""

    async def find(self, organisation_id: str, response_id: str) -> StoredResponse | None:
        """Return an organisation's response, the newest of that id."""
        found = await self._select(_named(organisation_id, response_id), stored_response.c.at.desc(), 1)
        return found[0] if found else None

    async def due(self, polled_before_ms: int, limit: int) -> list[StoredResponse]:
        """Return pending ones nobody has asked about since, the longest waiting first."""
        overdue = stored_response.c.pending & (stored_response.c.polled_at < polled_before_ms)
        return await self._select(overdue, stored_response.c.polled_at, limit)

    async def ends_of(self, attempt_ids: Sequence[str]) -> dict[str, Charge | None]:
        """Return those attempts whose answers have ended, with their charges, None where none is known."""
        ends: dict[str, Charge | None] = {}
        for first in range(0, len(attempt_ids), DELETE_BATCH):
            some = attempt_ids[first : first + DELETE_BATCH]
            waiting = sa.select(stored_response.c.attempt_id).where(
                stored_response.c.pending, stored_response.c.attempt_id.in_(some)
            )
            records = sa.select(journal.c.attempt_id, journal.c.charge).where(
                journal.c.attempt_id.in_(some), journal.c.charge != b""
            )
            async with self._database.reading() as connection:
                # In this order: what ends in between still waits.
                pending = set(await connection.scalars(waiting))
                charges = {row.attempt_id: row.charge for row in await connection.execute(records)}
            for attempt_id in some:
                if attempt_id not in pending:
                    charge = charges.get(attempt_id)
                    ends[attempt_id] = None if charge is None else Charge.FromString(charge)
        return ends

    async def _select(
        self, condition: sa.ColumnElement[bool], order: sa.ColumnElement[Any], limit: int
    ) -> list[StoredResponse]:
        query = sa.select(stored_response).where(condition).order_by(order).limit(limit)
        async with self._database.reading() as connection:
            return [StoredResponse(**row._mapping) for row in await connection.execute(query)]

    async def claim(self, stored: StoredResponse, now_ms: int) -> bool:
        """Note that its provider is asked about it now. Tells whether nobody else has meanwhile."""
        update = sa.update(stored_response).where(
            _is(stored),
            stored_response.c.pending,
            stored_response.c.polled_at == stored.polled_at,
        )
        async with self._database.transaction() as connection:
            return (await connection.execute(update.values(polled_at=now_ms))).rowcount == 1

    async def settle(self, stored: StoredResponse, charge: Charge, decision: Decision) -> bool:
        """Put a charge where billing will be told of it, and what is known into the record of the request.

        Tells whether it was still to be paid; when not, nothing has changed.
        """
        end = sa.update(stored_response).where(_is(stored), stored_response.c.pending)
        record = journal.c.attempt_id == stored.attempt_id
        async with self._database.transaction() as connection:
            nothing = dict.fromkeys(("charge", "price", "margin", "baseline", "baseline_margin"), b"")
            ended = await connection.execute(end.values(pending=False, **nothing))
            if ended.rowcount != 1:
                return False
            known = await connection.scalar(sa.select(journal.c.decision).where(record))
            if known is not None:
                values = {
                    "decision": _merged(known, decision),
                    "charge": charge.SerializeToString(),
                    # This process carries it to billing, whoever began the answer.
                    "instance_id": self._instance_id,
                }
                await connection.execute(sa.update(journal).where(record).values(values))
                owed = self._insert(unsettled).values(attempt_id=stored.attempt_id)
                await connection.execute(owed.on_conflict_do_nothing())
        self._on_charge()
        return True

    async def delete(self, stored: StoredResponse) -> None:
        """Forget a response that its provider no longer keeps."""
        gone = _named(stored.organisation_id, stored.response_id) & ~stored_response.c.pending
        async with self._database.transaction() as connection:
            await connection.execute(sa.delete(stored_response).where(gone))

    async def delete_before(self, at_ms: int) -> None:
        """Forget responses older than this."""
        key = stored_response.primary_key.columns
        old = sa.select(*key).where(~stored_response.c.pending, stored_response.c.at < at_ms)
        batch = sa.delete(stored_response).where(sa.tuple_(*key).in_(old.limit(DELETE_BATCH)))
        deleted = DELETE_BATCH
        while deleted == DELETE_BATCH:
            async with self._database.transaction() as connection:
                deleted = (await connection.execute(batch)).rowcount


def _is(stored: StoredResponse) -> sa.ColumnElement[bool]:
    """Return what is true of this answer alone, and not of another one of its id."""
    named = _named(stored.organisation_id, stored.response_id)
    return named & (stored_response.c.attempt_id == stored.attempt_id)


def _named(organisation_id: str, response_id: str) -> sa.ColumnElement[bool]:
    return (stored_response.c.organisation_id == organisation_id) & (
        stored_response.c.response_id == response_id
    )


def _merged(known: bytes, end: Decision) -> bytes:
    """Return the record of a request with what its end has brought."""
    decision = Decision.FromString(known)
    decision.ClearField("usage")
    decision.ClearField("finish")
    decision.MergeFrom(end)
    if decision.attempts:
        speaker = decision.attempts[-1]
        speaker.state = end.state if end.state in ("complete", "cancelled") else "failed"
        speaker.usage.CopyFrom(end.usage)
        speaker.cost = end.cost or format_nano(0)
    return decision.SerializeToString()
