"""Booking charges: usage events, entries and what they were reserved by, all in one transaction.

One ledger transaction per account and batch: the events name it, so that the sum of the events of a
transaction is its entry, and each event exists once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.ledger import REVENUE, Hold, Lease, Settlement, is_late, settle, wallet_of
from services.billing.store.accounts import Accounts
from services.billing.store.rollup import roll_up
from services.billing.store.tables import account, hold, lease, ledger_transaction, usage_event
from services.billing.store.usage import event_row
from services.common.ids import new_id


class Settlements(Accounts):
    """Idempotent booking of batches."""

    async def settle(self, charges: Sequence[Charge], now: int) -> int:
        """Book the charges that are not booked yet and return how many they were."""
        by_id = {charge.charge_id: charge for charge in sorted(charges, key=lambda c: c.charge_id)}
        if not by_id:
            return 0
        transaction_ids = {charge.organisation_id: new_id("txn") for charge in by_id.values()}
        async with self.database.transaction() as connection:
            leases = await self._lock_leases(connection, charges)
            holds = await self._lock_holds(connection, charges)
            rows = [
                event_row(
                    charge, transaction_ids[charge.organisation_id], is_late(charge, leases, holds), now
                )
                for charge in by_id.values()
            ]
            insert = self._insert(usage_event).on_conflict_do_nothing().returning(usage_event.c.id)
            booked = (await connection.scalars(insert, rows)).all()
            fresh = [by_id[charge_id] for charge_id in booked]
            if fresh:
                settlement = settle(fresh, leases, holds)
                await self._end_reservations(connection, settlement)
                await self._book(connection, fresh, settlement, transaction_ids, now)
                await roll_up(connection, self._insert, [row for row in rows if row["id"] in set(booked)])
        return len(fresh)

    async def _lock_leases(self, connection: AsyncConnection, charges: Sequence[Charge]) -> dict[str, Lease]:
        ids = {charge.lease_id for charge in charges if charge.lease_id and not charge.hold_id}
        if not ids:
            return {}
        query = sa.select(lease).where(lease.c.id.in_(ids)).order_by(lease.c.id).with_for_update()
        rows = await connection.execute(query)
        return {
            row.id: Lease(row.id, row.account_id, row.granted, row.spent, row.state == "open") for row in rows
        }

    async def _lock_holds(self, connection: AsyncConnection, charges: Sequence[Charge]) -> dict[str, Hold]:
        ids = {charge.hold_id for charge in charges if charge.hold_id}
        if not ids:
            return {}
        query = sa.select(hold).where(hold.c.id.in_(ids)).order_by(hold.c.id).with_for_update()
        rows = await connection.execute(query)
        return {row.id: Hold(row.id, row.account_id, row.amount, row.state == "open") for row in rows}

    async def _end_reservations(self, connection: AsyncConnection, settlement: Settlement) -> None:
        """Their rows are locked: the amounts were computed from what is still there."""
        if settlement.spent:
            spend = sa.update(lease).where(lease.c.id == sa.bindparam("lease_id"))
            await connection.execute(
                spend.values(spent=lease.c.spent + sa.bindparam("more")),
                [{"lease_id": lease_id, "more": amount} for lease_id, amount in settlement.spent.items()],
            )
        if settlement.captured:
            capture = sa.update(hold).where(hold.c.id == sa.bindparam("hold_id"))
            await connection.execute(
                capture.values(state="captured", captured=sa.bindparam("part")),
                [{"hold_id": hold_id, "part": amount} for hold_id, amount in settlement.captured.items()],
            )

    async def _book(
        self,
        connection: AsyncConnection,
        charges: Sequence[Charge],
        settlement: Settlement,
        transaction_ids: dict[str, str],
        now: int,
    ) -> None:
        await self._open_missing(connection, charges, now)
        by_organisation: dict[str, list[Charge]] = {}
        for charge in charges:
            by_organisation.setdefault(charge.organisation_id, []).append(charge)
        entries, sums, revenue = [], {}, 0
        transactions: list[dict[str, Any]] = []
        for organisation_id, batch in by_organisation.items():
            wallet, transaction_id = wallet_of(organisation_id), transaction_ids[organisation_id]
            change = settlement.accounts[wallet]
            fingerprint = _fingerprint(batch)
            transactions.append(
                {
                    "id": transaction_id,
                    "kind": "charges",
                    "fingerprint": fingerprint,
                    "actor": "",
                    "note": "",
                    "at": now,
                }
            )
            entries += [(transaction_id, wallet, -change.posted), (transaction_id, REVENUE, change.posted)]
            sums[wallet] = {"posted": -change.posted, "held": -change.held, "leased": -change.leased}
            revenue += change.posted
        sums[REVENUE] = {"posted": revenue}
        await connection.execute(sa.insert(ledger_transaction), transactions)
        await self._add(connection, sums)
        await self._book_entries(connection, entries)

    async def _open_missing(self, connection: AsyncConnection, charges: Sequence[Charge], now: int) -> None:
        """Usage is never dropped: who has no account yet gets one."""
        wallets = {wallet_of(charge.organisation_id): charge.organisation_id for charge in charges}
        known = await connection.scalars(sa.select(account.c.id).where(account.c.id.in_(wallets)))
        missing = wallets.keys() - set(known.all())
        await self._open(connection, (wallets[wallet] for wallet in missing), now)


def _fingerprint(charges: Sequence[Charge]) -> str:
    content = "\n".join(sorted(f"{charge.charge_id} {charge.amount_nano_credits}" for charge in charges))
    return hashlib.sha256(content.encode()).hexdigest()
