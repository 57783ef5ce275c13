"""Booking charges: usage events, entries and what they were reserved by, all in one transaction.

One ledger transaction per organisation and batch: the events name it, so that the sum of the events of a
transaction is what it took from the organisation, and each event exists once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.accounts import REVENUE, ROUNDING, cogs_of, payable_of, wallet_of
from services.billing.domain.canonical import EVENT_CONTENT, FORMAT, events_digest
from services.billing.domain.errors import IdempotencyKeyReusedError
from services.billing.domain.ledger import (
    PICO_PER_NANO,
    Hold,
    Lease,
    Settlement,
    cost_of,
    is_late,
    settle,
)
from services.billing.domain.purse import Posting
from services.billing.store.accounts import Balance
from services.billing.store.counting import Alert, Booking, announce
from services.billing.store.postings import Postings
from services.billing.store.rollup import adding_up, roll_up
from services.billing.store.tables import account, hold, lease, ledger_transaction, usage_event
from services.billing.store.usage import event_row
from services.common.bulk import BulkInsert, OneOf, Row, name_of
from services.common.db import Database
from services.common.ids import new_id

# After so many rows, requests of the same process that wait for their turn get one.
TURN = 100
_IDS: Any = sa.bindparam("ids", expanding=True)
_LOCK_LEASES = sa.select(lease).where(lease.c.id.in_(_IDS)).order_by(lease.c.id).with_for_update()
_LOCK_HOLDS = sa.select(hold).where(hold.c.id.in_(_IDS)).order_by(hold.c.id).with_for_update()
_SPEND = (
    sa.update(lease)
    .where(lease.c.id == sa.bindparam("lease_id"))
    .values(spent=lease.c.spent + sa.bindparam("more"))
)
_CAPTURE = (
    sa.update(hold)
    .where(hold.c.id == sa.bindparam("hold_id"))
    .values(state="captured", captured=sa.bindparam("part"))
)
_BOOKED = (
    sa.select(usage_event, ledger_transaction.c.format)
    .join(ledger_transaction, ledger_transaction.c.id == usage_event.c.transaction_id)
    .where(usage_event.c.id.in_(_IDS))
)
# What of an event does not come from its charge, and what does only if the charge says when.
_OURS, _WHEN = {"transaction_id", "late"}, {"at", "day"}
# Columns that events of format 0 had no content for.
_LATER = {"cost", "rounding_pico"}
_AT = {column.name: number for number, column in enumerate(usage_event.c)}
_organisation_of, _transaction_of = itemgetter(_AT["organisation_id"]), itemgetter(_AT["transaction_id"])
_CONTENT = {form: itemgetter(*(_AT[name] for name in names)) for form, names in EVENT_CONTENT.items()}


class Settlements(Postings):
    """Idempotent booking of batches."""

    limits: Booking | None = None
    """Counts what is booked; set by the wiring."""

    def __init__(self, database: Database, in_flight_retry_after_s: float = 1.0) -> None:
        super().__init__(database, in_flight_retry_after_s)
        self._new_events = BulkInsert(database, usage_event, returning="id")
        self._one_of = OneOf(database)
        events = f"SELECT id FROM {name_of(database, usage_event)}"
        self._events_of = f"{events} WHERE transaction_id {self._one_of.text} ORDER BY id"
        self._add_to_sums = adding_up(database)

    async def settle(self, charges: Sequence[Charge], now: int) -> int:
        """Book the charges that are not booked yet and return how many they were.

        Raises IdempotencyKeyReusedError when one is booked with other content; then nothing is booked.
        """
        by_id = {charge.charge_id: charge for charge in sorted(charges, key=lambda c: c.charge_id)}
        if not by_id:
            return 0
        if len(by_id) < len(charges):
            _check_alike(charges, by_id)
        raised: list[Alert] = []
        postings = {
            organisation_id: Posting(new_id("txn"), "charges", organisation_id)
            for organisation_id in {charge.organisation_id for charge in charges}
        }
        providers = {charge.provider for charge in by_id.values()}
        await self._open_platform({name(p) for p in providers for name in (cogs_of, payable_of)}, now)
        async with self.database.transaction() as connection:
            leases = await self._lock_leases(connection, charges)
            holds = await self._lock_holds(connection, charges)
            late = {each.charge_id for each in by_id.values() if is_late(each, leases, holds)}
            rows = await self._rows(by_id.values(), postings, late, now)
            booked = await self._store_new(connection, rows)
            if len(booked) < len(rows):
                await self._check_booked(connection, by_id, rows, set(booked))
            fresh = [by_id[charge_id] for charge_id in booked]
            if fresh:
                settlement = settle(fresh, leases, holds, late)
                await self._end_reservations(connection, settlement)
                self.crash.pass_by("after_capture")
                events = [rows[each] for each in booked]
                _tie(postings, events)
                if self.limits is not None:
                    raised = await self.limits.book(connection, fresh, now)
                await self._book(connection, fresh, settlement, postings, now)
                await roll_up(connection, self._add_to_sums, events)
                self.crash.pass_by("before_settle_commit")
        self.crash.pass_by("after_settle_commit")
        announce(raised)
        return len(fresh)

    async def _rows(
        self, charges: Iterable[Charge], postings: Mapping[str, Posting], late: Container[str], now: int
    ) -> dict[str, Row]:
        """Return the rows of usage events, by their ids."""
        rows = {}
        for number, charge in enumerate(charges, 1):
            charge_id = charge.charge_id
            transaction_id = postings[charge.organisation_id].id
            rows[charge_id] = event_row(charge, transaction_id, charge_id in late, now)
            if number % TURN == 0:
                await asyncio.sleep(0)
        return rows

    async def _store_new(self, connection: AsyncConnection, rows: Mapping[str, Row]) -> Sequence[str]:
        """Store the events that are not stored yet, and return their ids."""
        statements = self._new_events.of(list(rows.values()))
        if self.database.sqlite:
            count = 0
            for statement in statements:
                count += (await connection.exec_driver_sql(*statement)).rowcount
            if count == len(rows):
                return list(rows)
            # Some were known: the new ones name the transactions that are being written.
            ids = self._one_of.argument(list({_transaction_of(row) for row in rows.values()}))
            return (await connection.exec_driver_sql(self._events_of, (ids,))).scalars().all()
        ((text, arrays),) = statements
        inserted = await connection.exec_driver_sql(text, arrays)
        return inserted.scalars().all()

    async def _check_booked(
        self,
        connection: AsyncConnection,
        charges: Mapping[str, Charge],
        rows: Mapping[str, Row],
        new: Container[str],
    ) -> None:
        """Refuse charges that were booked before with other content."""
        ids = [each for each in rows if each not in new]
        for event in await connection.execute(_BOOKED, {"ids": ids}):
            charge = charges[event.id]
            ignored = _OURS if charge.HasField("at") else _OURS | _WHEN
            if event.format not in EVENT_CONTENT:
                ignored = ignored | _LATER
            names = EVENT_CONTENT.get(event.format, EVENT_CONTENT[1])
            row, was = rows[event.id], event._mapping
            other = [name for name in names if name not in ignored and row[_AT[name]] != was[name]]
            if other:
                raise _reused(event.id, ", ".join(other))

    async def _lock_leases(self, connection: AsyncConnection, charges: Sequence[Charge]) -> dict[str, Lease]:
        ids = {charge.lease_id for charge in charges if charge.lease_id and not charge.hold_id}
        if not ids:
            return {}
        rows = await connection.execute(_LOCK_LEASES, {"ids": list(ids)})
        return {
            row.id: Lease(row.id, row.account_id, row.granted, row.spent, row.state == "open") for row in rows
        }

    async def _lock_holds(self, connection: AsyncConnection, charges: Sequence[Charge]) -> dict[str, Hold]:
        ids = {charge.hold_id for charge in charges if charge.hold_id}
        if not ids:
            return {}
        rows = await connection.execute(_LOCK_HOLDS, {"ids": list(ids)})
        return {row.id: Hold(row.id, row.account_id, row.amount, row.state == "open") for row in rows}

    async def _end_reservations(self, connection: AsyncConnection, settlement: Settlement) -> None:
        """Their rows are locked: the amounts were computed from what is still there."""
        if settlement.spent:
            await connection.execute(
                _SPEND,
                [{"lease_id": lease_id, "more": amount} for lease_id, amount in settlement.spent.items()],
            )
        if settlement.captured:
            await connection.execute(
                _CAPTURE,
                [{"hold_id": hold_id, "part": amount} for hold_id, amount in settlement.captured.items()],
            )

    async def _book(
        self,
        connection: AsyncConnection,
        charges: Sequence[Charge],
        settlement: Settlement,
        postings: Mapping[str, Posting],
        now: int,
    ) -> None:
        organisation_ids = sorted({charge.organisation_id for charge in charges})
        balances = await self._wallets(connection, organisation_ids, now)
        purses = await self._purses(connection, balances)
        # What has expired must not pay, except for what was reserved in time.
        breakages = self._expiries(purses.values(), now)
        booked, reserved = [], {}
        for organisation_id in organisation_ids:
            wallet, posting = wallet_of(organisation_id), postings[organisation_id]
            change = settlement.accounts[wallet]
            purses[organisation_id].charge(posting, change.posted, REVENUE, now)
            reserved[wallet] = {"held": -change.held, "leased": -change.leased}
            booked.append(posting)
        costs: dict[tuple[str, str], int] = {}
        for charge in charges:
            whose = charge.organisation_id, charge.provider
            costs[whose] = costs.get(whose, 0) + cost_of(charge)
        for (organisation_id, provider), cost in costs.items():
            postings[organisation_id].move(cogs_of(provider), payable_of(provider), cost)
        await self._round(connection, charges, booked[0])
        await self._write(connection, [*breakages, *booked], now, reserved=reserved)

    async def _round(self, connection: AsyncConnection, charges: Sequence[Charge], posting: Posting) -> None:
        """Book what rounding up has earned apart from revenue, in whole nano-credits; the rest is carried."""
        pico = sum(charge.rounding_pico_credits for charge in charges)
        if not pico:
            return
        query = sa.select(account.c.carry_pico).where(account.c.id == ROUNDING)
        carried = await connection.scalar(query.with_for_update(key_share=True)) or 0
        nano, carry = divmod(carried + pico, PICO_PER_NANO)
        posting.move(REVENUE, ROUNDING, nano)
        await connection.execute(sa.update(account).where(account.c.id == ROUNDING).values(carry_pico=carry))

    async def _wallets(
        self, connection: AsyncConnection, organisation_ids: Sequence[str], now: int
    ) -> dict[str, Balance]:
        """Lock wallets. Usage is never dropped: who has no account yet gets one."""
        balances = await self._lock_wallets(connection, organisation_ids)
        if len(balances) < len(organisation_ids):
            await self._open(connection, set(organisation_ids) - set(balances), now)
            balances = await self._lock_wallets(connection, organisation_ids)
        return balances


def _check_alike(charges: Iterable[Charge], by_id: Mapping[str, Charge]) -> None:
    """Refuse a batch that has one id for several contents."""
    for charge in charges:
        if charge != by_id[charge.charge_id]:
            raise _reused(charge.charge_id, "in the same batch")


def _reused(charge_id: str, what: str) -> IdempotencyKeyReusedError:
    return IdempotencyKeyReusedError(
        f"the charge {charge_id} exists with other content ({what}); repeat it as it was, or correct it",
        charge_id=charge_id,
    )


def _tie(postings: Mapping[str, Posting], events: Iterable[Row]) -> None:
    """Give each transaction the digest of its events: it ties them to it."""
    content_of = _CONTENT[FORMAT]
    contents: dict[str, list[Row]] = {}
    for event in events:
        contents.setdefault(_organisation_of(event), []).append(content_of(event))
    for organisation_id, content in contents.items():
        postings[organisation_id].fingerprint = events_digest(content)
