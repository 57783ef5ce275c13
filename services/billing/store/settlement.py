"""Booking charges: usage events, entries and what they were reserved by, all in one transaction.

One ledger transaction per organisation and batch: the events name it, so that the sum of the events of a
transaction is what it took from the organisation, and each event exists once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.accounts import REVENUE, ROUNDING, cogs_of, payable_of, wallet_of
from services.billing.domain.canonical import EVENT_CONTENT, FORMAT, events_digest
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
from services.billing.store.accounts import Balance, inserting_new
from services.billing.store.counting import Alert, Booking, announce
from services.billing.store.postings import Postings
from services.billing.store.rollup import roll_up
from services.billing.store.tables import account, hold, lease, usage_event
from services.billing.store.usage import event_row
from services.common.ids import new_id

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
_CONTENT = {form: itemgetter(*names) for form, names in EVENT_CONTENT.items()}


class Settlements(Postings):
    """Idempotent booking of batches."""

    limits: Booking | None = None
    """Counts what is booked; set by the wiring."""

    async def settle(self, charges: Sequence[Charge], now: int) -> int:
        """Book the charges that are not booked yet and return how many they were."""
        by_id = {charge.charge_id: charge for charge in sorted(charges, key=lambda c: c.charge_id)}
        if not by_id:
            return 0
        raised: list[Alert] = []
        postings = {
            charge.organisation_id: Posting(new_id("txn"), "charges", charge.organisation_id)
            for charge in by_id.values()
        }
        providers = {charge.provider for charge in by_id.values()}
        await self._open_platform({name(p) for p in providers for name in (cogs_of, payable_of)}, now)
        async with self.database.transaction() as connection:
            leases = await self._lock_leases(connection, charges)
            holds = await self._lock_holds(connection, charges)
            rows = {
                charge.charge_id: event_row(
                    charge, postings[charge.organisation_id].id, is_late(charge, leases, holds), now
                )
                for charge in by_id.values()
            }
            insert = inserting_new(self._insert, usage_event)
            booked = (await connection.scalars(insert, list(rows.values()))).all()
            fresh = [by_id[charge_id] for charge_id in booked]
            if fresh:
                settlement = settle(fresh, leases, holds)
                await self._end_reservations(connection, settlement)
                self.crash.pass_by("after_capture")
                for organisation_id, posting in postings.items():
                    posting.fingerprint = _fingerprint((rows[each] for each in booked), organisation_id)
                if self.limits is not None:
                    raised = await self.limits.book(connection, fresh, now)
                await self._book(connection, fresh, settlement, postings, now)
                await roll_up(connection, self._insert, [rows[each] for each in booked])
                self.crash.pass_by("before_settle_commit")
        self.crash.pass_by("after_settle_commit")
        announce(raised)
        return len(fresh)

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
        for charge in charges:
            posting = postings[charge.organisation_id]
            posting.move(cogs_of(charge.provider), payable_of(charge.provider), cost_of(charge))
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


def _fingerprint(rows: Iterable[Mapping[str, Any]], organisation_id: str) -> str:
    """Return the digest of an organisation's events: it ties them to their transaction."""
    content = _CONTENT[FORMAT]
    return events_digest(content(row) for row in rows if row["organisation_id"] == organisation_id)
