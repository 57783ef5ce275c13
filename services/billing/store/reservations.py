"""Holds and leases: credits that are set aside.

Nothing here can overspend: the one statement that sets credits aside carries its own condition, in
the transaction that writes the hold or the lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.accounts import wallet_of
from services.billing.domain.errors import (
    AlreadyEndedError,
    BillingError,
    IdempotencyKeyReusedError,
    NotFoundError,
    account_closed,
    kept_refusal,
    refusal,
    restored_refusal,
)
from services.billing.domain.ledger import slice_of
from services.billing.store.accounts import AVAILABLE, OPEN, Accounts, Balance
from services.billing.store.counting import Booking
from services.billing.store.held_limits import Drawing
from services.billing.store.tables import account, hold, lease

# Rows that one transaction of a sweep or a renewal changes.
SWEEP = 500
LISTED = 1000
REFUSED = "refused"

# Asked again and again, so made once; see Database.look.
_HOLDS_DUE = sa.select(hold.c.id, hold.c.account_id, hold.c.amount).where(
    hold.c.state == "open", hold.c.expires_at <= sa.bindparam("now")
)
_ANY_HOLD_DUE = _HOLDS_DUE.limit(1)
_LEASES_DUE = sa.select(lease).where(lease.c.state == "open", lease.c.expires_at <= sa.bindparam("now"))
_ANY_LEASE_DUE = _LEASES_DUE.limit(1)


class Reservations(Accounts):
    """What holds and leases share."""

    def _guard(self, amount: int) -> sa.ColumnElement[bool]:
        """Return the condition under which `amount` may be set aside."""
        return sa.literal(amount) <= AVAILABLE

    async def _reserve(
        self, connection: AsyncConnection, account_id: str, column: sa.Column[int], amount: int
    ) -> int | None:
        """Set `amount` aside and return what stays available, or None when there is too little."""
        statement = (
            sa.update(account)
            .where(account.c.id == account_id, self._guard(amount), account.c.state == OPEN)
            .values({column: column + amount})
            .returning(AVAILABLE)
        )
        available: int | None = (await connection.execute(statement)).scalar_one_or_none()
        return available

    async def _refuse(self, connection: AsyncConnection, account_id: str, required: int) -> BillingError:
        balance = await self._balance(connection, account_id) or Balance()
        if balance.closed:
            return account_closed(account_id.partition(":")[2])
        return refusal(required, balance.posted, balance.available, self.in_flight_retry_after_s)

    async def _keep_refusal(
        self, connection: AsyncConnection, table: sa.Table, id: str, account_id: str, required: int
    ) -> BillingError:
        """Refuse a new hold or lease for ever: the same id gets the same answer, a new try needs a new id."""
        error = await self._refuse(connection, account_id, required)
        await self._keep_error(connection, table, id, error)
        return error

    async def _keep_error(
        self, connection: AsyncConnection, table: sa.Table, id: str, error: BillingError
    ) -> None:
        values = {"state": REFUSED, "refusal": kept_refusal(error)}
        await connection.execute(sa.update(table).where(table.c.id == id).values(values))

    def _check_open(self, what: str, known: Any) -> None:
        """Raise what a hold or lease that is not open answers."""
        if known.state == REFUSED:
            raise restored_refusal(known.refusal, self.in_flight_retry_after_s)
        if known.state != OPEN:
            raise AlreadyEndedError(f"the {what} is {known.state}; use a new id", state=known.state)


class Holds(Reservations):
    """Reservations for one request."""

    limits: Booking | None = None
    """What holds may draw on; set by the wiring."""

    async def create_hold(
        self,
        hold_id: str,
        organisation_id: str,
        amount: int,
        ttl: int,
        now: int,
        drawing: Drawing | None = None,
    ) -> int:
        """Set credits aside for a request and return when that expires; `ttl` in microseconds.

        Raises InsufficientCreditsError, InFlightBudgetExhaustedError, IdempotencyKeyReusedError,
        AlreadyEndedError, and with a `drawing` what limits refuse.
        """
        wallet = wallet_of(organisation_id)
        row = {
            "id": hold_id,
            "account_id": wallet,
            "amount": amount,
            "requested": amount,
            "captured": 0,
            "state": "open",
            "expires_at": now + ttl,
            "created_at": now,
            "refusal": "",
        }
        async with self.database.transaction() as connection:
            if not await self._insert_new(connection, hold, row):
                return await self._known_hold(connection, hold_id, wallet, amount)
            self.crash.pass_by("after_hold_insert")
            refused = await self._draw(connection, row, drawing)
            # What is free asks no wallet, which may be empty.
            priced = refused is None and amount > 0
            if priced and (await self._reserve(connection, wallet, account.c.held, amount) is None):
                await self._let_go(connection, [hold_id])
                refused = await self._refuse(connection, wallet, amount)
            if refused is not None:
                await self._keep_error(connection, hold, hold_id, refused)
            self.crash.pass_by("after_reserve")
        if refused is not None:
            raise refused
        self.crash.pass_by("after_hold_commit")
        return now + ttl

    async def _draw(
        self, connection: AsyncConnection, row: dict[str, Any], drawing: Drawing | None
    ) -> BillingError | None:
        """Draw on limits. Return the refusal, with nothing drawn, if there is one."""
        if drawing is None or self.limits is None:
            return None
        try:
            await self.limits.draw(connection, row["id"], drawing, row["amount"], row["expires_at"])
        except BillingError as refusal:
            return refusal
        return None

    async def _let_go(self, connection: AsyncConnection, hold_ids: Sequence[str]) -> None:
        """End what holds have drawn of limits."""
        if self.limits is not None:
            await self.limits.let_go(connection, hold_ids)

    async def _known_hold(self, connection: AsyncConnection, hold_id: str, wallet: str, amount: int) -> int:
        known = (await connection.execute(sa.select(hold).where(hold.c.id == hold_id))).one()
        if (known.account_id, known.requested) != (wallet, amount):
            raise IdempotencyKeyReusedError(f"the hold {hold_id} exists with other content; use a new id")
        self._check_open(f"hold {hold_id}", known)
        return int(known.expires_at)

    async def extend_hold(self, hold_id: str, amount: int, ttl: int, now: int) -> int:
        """Raise a hold to `amount`, postpone its expiry, and return it. Neither is ever lowered.

        Raises NotFoundError, AlreadyEndedError, InsufficientCreditsError, InFlightBudgetExhaustedError.
        """
        async with self.database.transaction() as connection:
            query = sa.select(hold).where(hold.c.id == hold_id).with_for_update()
            known = (await connection.execute(query)).one_or_none()
            if known is None:
                raise NotFoundError(f"there is no hold {hold_id}; create it first")
            self._check_open(f"hold {hold_id}", known)
            more = amount - known.amount
            expires_at = max(known.expires_at, now + ttl)
            if self.limits is not None:
                organisation_id = known.account_id.partition(":")[2]
                await self.limits.prolong(connection, hold_id, organisation_id, more, expires_at)
            if more > 0 and (await self._reserve(connection, known.account_id, account.c.held, more) is None):
                raise await self._refuse(connection, known.account_id, more)
            values = {"amount": max(known.amount, amount), "expires_at": expires_at}
            await connection.execute(sa.update(hold).where(hold.c.id == hold_id).values(values))
        return int(expires_at)

    async def release_hold(self, hold_id: str) -> None:
        """End a hold without a charge; ending an ended one changes nothing. Raises NotFoundError."""
        async with self.database.transaction() as connection:
            statement = sa.update(hold).where(hold.c.id == hold_id, hold.c.state == "open")
            released = await connection.execute(
                statement.values(state="released").returning(hold.c.account_id, hold.c.amount)
            )
            row = released.one_or_none()
            if row is not None:
                self.crash.pass_by("after_release")
                await self._let_go(connection, [hold_id])
                await self._add(connection, {row.account_id: {"held": -row.amount}})
            elif await connection.scalar(sa.select(hold.c.id).where(hold.c.id == hold_id)) is None:
                raise NotFoundError(f"there is no hold {hold_id}")

    async def expire_holds(self, now: int) -> int:
        """End holds past their expiry and return how many. Replicas may do it at the same time."""
        if not await self.database.look(_ANY_HOLD_DUE, now=now):
            return 0
        async with self.database.transaction() as connection:
            locked = _HOLDS_DUE.order_by(hold.c.id).limit(SWEEP).with_for_update(skip_locked=True)
            rows = (await connection.execute(locked, {"now": now})).all()
            ids = [row.id for row in rows]
            await connection.execute(sa.update(hold).where(hold.c.id.in_(ids)).values(state="expired"))
            await self._let_go(connection, ids)
            await self._add(connection, _sums("held", [(row.account_id, row.amount) for row in rows]))
        return len(rows)


class Leases(Reservations):
    """Slices that processes spend in memory."""

    async def acquire_lease(
        self,
        lease_id: str,
        organisation_id: str,
        holder: str,
        wanted: int,
        minimum: int,
        ttl: int,
        now: int,
    ) -> tuple[int, int, int]:
        """Set a slice aside; return what is granted, when it expires and what stays available.

        Raises InsufficientCreditsError, InFlightBudgetExhaustedError, IdempotencyKeyReusedError,
        AlreadyEndedError.
        """
        wallet = wallet_of(organisation_id)
        row = {
            "id": lease_id,
            "account_id": wallet,
            "holder": holder,
            "granted": 0,
            "spent": 0,
            "state": "open",
            "expires_at": now + ttl,
            "created_at": now,
            "refusal": "",
        }
        async with self.database.transaction() as connection:
            # First, because it waits for whoever changes a lease of this id: accounts are locked last.
            if not await self._insert_new(connection, lease, row):
                return await self._known_lease(connection, lease_id, wallet, holder)
            # Locked, so that the slice is cut from what is there now; the guard holds all the same.
            query = sa.select(AVAILABLE).where(account.c.id == wallet).with_for_update(key_share=True)
            granted = slice_of(await connection.scalar(query) or 0, wanted, minimum)
            rest = await self._reserve(connection, wallet, account.c.leased, granted) if granted else None
            if rest is not None:
                values = {"granted": granted}
                await connection.execute(sa.update(lease).where(lease.c.id == lease_id).values(values))
                self.crash.pass_by("before_lease_commit")
            else:
                refused = await self._keep_refusal(connection, lease, lease_id, wallet, minimum)
        if rest is None:
            raise refused
        self.crash.pass_by("after_lease_commit")
        return granted, now + ttl, rest

    async def _known_lease(
        self, connection: AsyncConnection, lease_id: str, wallet: str, holder: str
    ) -> tuple[int, int, int]:
        known = (await connection.execute(sa.select(lease).where(lease.c.id == lease_id))).one()
        if (known.account_id, known.holder) != (wallet, holder):
            raise IdempotencyKeyReusedError(f"the lease {lease_id} exists with other content; use a new id")
        self._check_open(f"lease {lease_id}", known)
        balance = await self._balance(connection, wallet) or Balance()
        return known.granted, known.expires_at, balance.available

    async def renew_leases(self, lease_ids: Sequence[str], ttl: int, now: int) -> list[str]:
        """Postpone the expiry of open leases and return which are open."""
        renewed: list[str] = []
        for first in range(0, len(lease_ids), SWEEP):
            renewed += await self._renew(lease_ids[first : first + SWEEP], now + ttl)
        return renewed

    async def _renew(self, lease_ids: Sequence[str], expires_at: int) -> Sequence[str]:
        async with self.database.transaction() as connection:
            still_open = sa.select(lease.c.id).where(lease.c.id.in_(lease_ids), lease.c.state == "open")
            # A closed account's leases run out: their holders settle, and are refused new ones.
            payer = sa.exists().where(account.c.id == lease.c.account_id, account.c.state == OPEN)
            still_open = still_open.where(payer)
            ids = (await connection.scalars(still_open.order_by(lease.c.id).with_for_update())).all()
            await connection.execute(
                sa.update(lease).where(lease.c.id.in_(ids)).values(expires_at=expires_at)
            )
        return ids

    async def close_lease(self, lease_id: str) -> int:
        """Return the unspent rest to the account; again the same answer. Raises NotFoundError."""
        async with self.database.transaction() as connection:
            query = sa.select(lease).where(lease.c.id == lease_id).with_for_update()
            known = (await connection.execute(query)).one_or_none()
            if known is None:
                raise NotFoundError(f"there is no lease {lease_id}")
            if known.state == "open":
                await self._close(connection, [known])
            self.crash.pass_by("before_close_commit")
        return max(0, int(known.granted - known.spent))

    async def expired_leases(self, holder: str, now: int) -> list[tuple[str, str]]:
        """Return (lease, holder) of open leases past their expiry, the longest expired first."""
        query = sa.select(lease.c.id, lease.c.holder).where(
            lease.c.state == "open", lease.c.expires_at <= now
        )
        if holder:
            query = query.where(lease.c.holder == holder)
        rows = await self.database.look(query.order_by(lease.c.expires_at, lease.c.id).limit(LISTED))
        return [(row.id, row.holder) for row in rows]

    async def close_abandoned_leases(self, expired_before: int) -> list[str]:
        """Close leases that expired long ago and that nobody closed; return which."""
        if not await self.database.look(_ANY_LEASE_DUE, now=expired_before):
            return []
        async with self.database.transaction() as connection:
            locked = _LEASES_DUE.order_by(lease.c.id).limit(SWEEP).with_for_update(skip_locked=True)
            rows = (await connection.execute(locked, {"now": expired_before})).all()
            await self._close(connection, rows)
        return [row.id for row in rows]

    async def _close(self, connection: AsyncConnection, rows: Sequence[Any]) -> None:
        ids = [row.id for row in rows]
        await connection.execute(sa.update(lease).where(lease.c.id.in_(ids)).values(state="closed"))
        rests = [(row.account_id, max(0, row.granted - row.spent)) for row in rows]
        await self._add(connection, _sums("leased", rests))


def _sums(column: str, amounts: Sequence[tuple[str, int]]) -> dict[str, dict[str, int]]:
    """Return what is to be added to `column` of each account so that `amounts` are set free."""
    sums: dict[str, dict[str, int]] = {}
    for account_id, amount in amounts:
        change = sums.setdefault(account_id, {column: 0})
        change[column] -= amount
    return sums
