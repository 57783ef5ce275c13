"""Corrections: refunds, reversals with a new booking, grants taken back. Originals are never touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.accounts import REVENUE, cogs_of, payable_of
from services.billing.domain.correction import (
    CORRECTION,
    REFUND,
    REVERSAL,
    Booking,
    Request,
    Step,
    current,
    refund_of,
)
from services.billing.domain.errors import (
    IdempotencyKeyReusedError,
    InFlightBudgetExhaustedError,
    NotFoundError,
)
from services.billing.domain.purse import COVER, RELEASE, UNCOVER, Posting, Purse, burned
from services.billing.store.auditing import keep_audit
from services.billing.store.postings import Postings
from services.billing.store.tables import (
    correction,
    credit_grant,
    grant_movement,
    usage_event,
)

# (transaction, amount, balance): what a correction answers, now and for ever.
Outcome = tuple[str, int, int]


class Corrections(Postings):
    """New entries that name the original."""

    async def refund_charge(self, request: Request, now: int) -> Outcome:
        """Give back `request.amount` of a charge, 0 for all that is left.

        Returns the transaction, the amount and the balance then. Raises NotFoundError,
        InvalidFieldError, IdempotencyKeyReusedError.
        """
        async with self.database.transaction() as connection:
            event = await self._event(connection, request.subject)
            posting = _posting(request, REFUND, event)
            known = await self._claim(connection, posting, now)
            if known is not None:
                return await self._known(connection, request, known)
            purse, booking = await self._open_charge(connection, event)
            amount = refund_of(booking, request.amount)
            await self._restore(connection, posting, purse, booking, amount, now)
            await self._write(connection, [posting], now, claimed=posting.id)
            step = Step(REFUND, posting.id, amount, 0)
            await self._keep(connection, request, step, purse, now)
        return posting.id, amount, purse.posted

    async def correct_charge(self, request: Request, now: int) -> Outcome:
        """Reverse what is left of a charge and book it anew with the right amount and cost.

        Returns the new transaction, its amount and the balance then. Raises NotFoundError,
        IdempotencyKeyReusedError.
        """
        async with self.database.transaction() as connection:
            event = await self._event(connection, request.subject)
            reversal = _posting(request, REVERSAL, event)
            known = await self._claim(connection, reversal, now)
            if known is not None:
                return await self._known(connection, request, known)
            purse, booking = await self._open_charge(connection, event)
            await self._restore(connection, reversal, purse, booking, booking.left, now)
            payable, cogs = payable_of(event.provider), cogs_of(event.provider)
            reversal.move(payable, cogs, booking.cost)
            again = _posting(request, CORRECTION, event)
            again.id = f"{request.id}:again"
            purse.charge(again, request.amount, REVENUE, now)
            cost = booking.cost if request.cost is None else request.cost
            again.move(cogs, payable, cost)
            await self._write(connection, [reversal, again], now, claimed=reversal.id)
            step = Step(CORRECTION, again.id, request.amount, cost)
            await self._keep(connection, request, step, purse, now)
        return again.id, request.amount, purse.posted

    async def reverse_grant(self, request: Request, now: int) -> Outcome:
        """Take back what is left of a grant; return the transaction, how much, and the balance then.

        Raises NotFoundError, IdempotencyKeyReusedError, InFlightBudgetExhaustedError.
        """
        async with self.database.transaction() as connection:
            found = sa.select(credit_grant).where(credit_grant.c.id == request.subject)
            grant = (await connection.execute(found)).one_or_none()
            if grant is None:
                raise NotFoundError(f"there is no grant {request.subject}; list the organisation's grants")
            posting = Posting(
                request.id,
                REVERSAL,
                grant.organisation_id,
                request.fingerprint,
                request.actor,
                request.note,
                grant.id,
            )
            known = await self._claim(connection, posting, now)
            if known is not None:
                return await self._known(connection, request, known)
            balances = await self._lock_wallets(connection, [grant.organisation_id])
            purse = (await self._purses(connection, balances, [grant.id]))[grant.organisation_id]
            amount = purse.slices[grant.id].remaining
            if amount > purse.posted - purse.reserved:
                error = InFlightBudgetExhaustedError(
                    "running requests hold credits of this grant; retry shortly"
                )
                error.retry_after_s = self.in_flight_retry_after_s
                raise error
            purse.reverse(posting, purse.slices[grant.id], grant.source, amount)
            await self._write(connection, [posting], now, claimed=posting.id)
            await self._keep(connection, request, Step(REVERSAL, posting.id, amount, 0), purse, now)
        return posting.id, amount, purse.posted

    async def _event(self, connection: AsyncConnection, charge_id: str) -> Any:
        query = sa.select(usage_event).where(usage_event.c.id == charge_id)
        event = (await connection.execute(query)).one_or_none()
        if event is None:
            raise NotFoundError(f"there is no charge {charge_id}; its id is the attempt's, as usage shows it")
        return event

    async def _open_charge(self, connection: AsyncConnection, event: Any) -> tuple[Purse, Booking]:
        """Lock the organisation's wallet; return its purse and where the charge is booked now."""
        balances = await self._lock_wallets(connection, [event.organisation_id])
        same = sa.select(usage_event.c.id, usage_event.c.amount)
        rows = await connection.execute(same.where(usage_event.c.transaction_id == event.transaction_id))
        # Charges of a transaction were paid in the order of their ids.
        before = sum(row.amount for row in rows if row.id < event.id)
        original = Booking(event.transaction_id, before, event.amount, event.cost)
        steps = sa.select(correction).where(correction.c.subject == event.id).order_by(correction.c.number)
        done = [
            Step(row.kind, row.transaction_id, int(row.amount), int(row.cost))
            for row in await connection.execute(steps)
        ]
        # Every grant the organisation ever had: those that paid may be empty now.
        every = sa.select(credit_grant.c.id).where(credit_grant.c.organisation_id == event.organisation_id)
        grants = (await connection.scalars(every)).all()
        purse = (await self._purses(connection, balances, grants))[event.organisation_id]
        return purse, current(original, done)

    async def _restore(
        self,
        connection: AsyncConnection,
        posting: Posting,
        purse: Purse,
        booking: Booking,
        amount: int,
        now: int,
    ) -> None:
        """Give `amount` of a booking back: the last that was paid, first."""
        query = (
            sa.select(grant_movement.c.grant_id, grant_movement.c.amount)
            .where(
                grant_movement.c.transaction_id == booking.transaction_id, grant_movement.c.kind == RELEASE
            )
            .order_by(grant_movement.c.position)
        )
        releases = [(row.grant_id, int(row.amount)) for row in await connection.execute(query)]
        start = booking.start + booking.left - amount
        parts = burned(releases, start, amount)
        covered = await self._covered(connection, purse) if any(payer is None for payer, _ in parts) else []
        purse.restore(posting, parts[::-1], covered, REVENUE, now)

    async def _covered(self, connection: AsyncConnection, purse: Purse) -> Sequence[tuple[str, int]]:
        """Return what each grant has paid of former debts, the latest grant first."""
        signed = sa.case(
            (grant_movement.c.kind == COVER, grant_movement.c.amount), else_=-grant_movement.c.amount
        )
        query = (
            sa.select(grant_movement.c.grant_id, sa.func.sum(signed).label("covered"))
            .where(grant_movement.c.grant_id.in_(purse.slices), grant_movement.c.kind.in_((COVER, UNCOVER)))
            .group_by(grant_movement.c.grant_id)
        )
        rows = [(row.grant_id, int(row.covered)) for row in await connection.execute(query)]
        return sorted(rows, key=lambda row: (purse.slices[row[0]].created_at, row[0]), reverse=True)

    async def _keep(
        self, connection: AsyncConnection, request: Request, step: Step, purse: Purse, now: int
    ) -> None:
        """Keep the outcome, and who asked for it."""
        # Under the wallet's lock, so that no two corrections of one thing get the same number.
        count = sa.select(sa.func.count()).where(correction.c.subject == request.subject)
        row = {
            "id": request.id,
            "kind": step.kind,
            "subject": request.subject,
            "number": int(await connection.scalar(count) or 0) + 1,
            "transaction_id": step.transaction_id,
            "amount": step.amount,
            "cost": step.cost,
            "balance_after": purse.posted,
        }
        await connection.execute(sa.insert(correction), row)
        await keep_audit(
            connection,
            step.kind,
            purse.organisation_id,
            request.subject,
            request.actor,
            request.note,
            now,
        )

    async def _known(self, connection: AsyncConnection, request: Request, fingerprint: str) -> Outcome:
        if fingerprint != request.fingerprint:
            raise IdempotencyKeyReusedError("the idempotency key was used with other content; use a new key")
        query = sa.select(correction).where(correction.c.id == request.id)
        row = (await connection.execute(query)).one()
        return row.transaction_id, int(row.amount), int(row.balance_after)


def _posting(request: Request, kind: str, event: Any) -> Posting:
    return Posting(
        request.id,
        kind,
        event.organisation_id,
        request.fingerprint,
        request.actor,
        request.note,
        event.transaction_id,
    )
