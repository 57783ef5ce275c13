"""Grants: first credits, top-ups, allowances, their expiry and their reversal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.accounts import wallet_of
from services.billing.domain.errors import (
    IdempotencyKeyReusedError,
    InvalidFieldError,
    NotFoundError,
    account_closed,
)
from services.billing.domain.grant import Grant, allowance_grant
from services.billing.domain.ledger import LARGEST_AMOUNT
from services.billing.domain.purse import Posting, Purse, Slice
from services.billing.store.accounts import Balance
from services.billing.store.auditing import keep_audit
from services.billing.store.postings import Postings
from services.billing.store.tables import account, credit_grant, ledger_transaction

# Organisations whose grants one transaction of a sweep ends.
SWEEP = 200

# Asked again and again, so made once; see Database.look. Organisations whose credits running requests hold
# wait for their end.
_EXPIRED = (
    sa.select(credit_grant.c.organisation_id)
    .distinct()
    .where(credit_grant.c.remaining > 0, credit_grant.c.expires_at <= sa.bindparam("now"))
    .join(account, account.c.id == sa.literal("wallet:") + credit_grant.c.organisation_id)
    .where(account.c.posted - account.c.held - account.c.leased > 0)
    .limit(SWEEP)
)


class Grants(Postings):
    """Credits that are given."""

    async def welcome(self, grants: Sequence[Grant], now: int) -> None:
        """Open the account of each organisation and book its first grant, once for ever."""
        first = {grant.organisation_id: grant for grant in grants}
        await self._open_platform({grant.source for grant in grants}, now)
        wallets = [wallet_of(organisation_id) for organisation_id in first]
        fresh = sa.select(account.c.organisation_id).where(account.c.id.in_(wallets), ~account.c.welcomed)
        async with self.database.transaction() as connection:
            await self._open(connection, first, now)
            locked = fresh.order_by(account.c.id).with_for_update(key_share=True)
            organisation_ids = (await connection.scalars(locked)).all()
            if not organisation_ids:
                return
            claimed = [wallet_of(organisation_id) for organisation_id in organisation_ids]
            await connection.execute(
                sa.update(account).where(account.c.id.in_(claimed)).values(welcomed=True)
            )
            balances = await self._lock_wallets(connection, organisation_ids)
            purses = await self._purses(connection, balances)
            given = [first[each] for each in organisation_ids if first[each].amount]
            postings = [_posting(grant) for grant in given]
            for grant, posting in zip(given, postings, strict=True):
                await self._add_grant(connection, grant, posting, purses[grant.organisation_id], now)
            if postings:
                await self._write(connection, postings, now)

    async def grant(self, grant: Grant, now: int) -> Balance:
        """Book a grant once and return the balance then; the same grant again gives the same answer.

        Raises NotFoundError, IdempotencyKeyReusedError, AccountClosedError, InvalidFieldError.
        """
        await self._open_platform([grant.source], now)
        async with self.database.transaction() as connection:
            return await self._book_grant(connection, grant, now)

    async def grant_allowance(
        self, organisation_id: str, period: str, amount: int, expires_at: int, now: int, actor: str = ""
    ) -> Balance:
        """Give an organisation its allowance of a period, once however often it is asked for.

        `amount` in nano-credits, `expires_at` and `now` in microseconds since 1970. Returns the balance then.
        Raises NotFoundError, IdempotencyKeyReusedError (the period came with another amount or expiry),
        AccountClosedError, InvalidFieldError.
        """
        return await self.grant(allowance_grant(organisation_id, period, amount, expires_at, actor), now)

    async def _book_grant(self, connection: AsyncConnection, grant: Grant, now: int) -> Balance:
        posting = _posting(grant)
        known = await self._claim(connection, posting, now)
        if known is not None:
            return await self._known_grant(connection, grant, known)
        balances = await self._lock_wallets(connection, [grant.organisation_id])
        if grant.organisation_id not in balances:
            raise NotFoundError(
                f"there is no organisation {grant.organisation_id}", organisation_id=grant.organisation_id
            )
        if balances[grant.organisation_id].closed:
            raise account_closed(grant.organisation_id)
        purse = (await self._purses(connection, balances))[grant.organisation_id]
        await self._add_grant(connection, grant, posting, purse, now)
        await self._write(connection, [posting], now, claimed=posting.id)
        if grant.actor:
            await keep_audit(
                connection, "grant", grant.organisation_id, grant.id, grant.actor, grant.note, now
            )
        return Balance(purse.posted)

    async def _add_grant(
        self, connection: AsyncConnection, grant: Grant, posting: Posting, purse: Purse, now: int
    ) -> None:
        if grant.expires_at is not None and grant.expires_at <= now:
            raise InvalidFieldError("expires_at", "has passed; name a time in the future, or none")
        slice_ = Slice(grant.id, grant.kind, grant.priority, grant.expires_at, now, grant.amount)
        purse.add(posting, slice_, grant.source, now)
        if purse.posted > LARGEST_AMOUNT:
            raise InvalidFieldError("amount", "would raise the balance above 1,000,000,000 credits")
        # What is left of it is the sum of its movements, the plan included: they raise it from 0.
        row = _grant_row(grant, now) | {"balance_after": purse.posted}
        await connection.execute(sa.insert(credit_grant), row)

    async def _known_grant(self, connection: AsyncConnection, grant: Grant, fingerprint: str) -> Balance:
        if fingerprint != grant.fingerprint:
            raise IdempotencyKeyReusedError("the idempotency key was used for another grant; use a new key")
        query = sa.select(credit_grant.c.balance_after).where(credit_grant.c.id == grant.id)
        return Balance(int(await connection.scalar(query) or 0))

    async def expire_grants(self, now: int) -> int:
        """Book what has expired and return of how many organisations. Replicas may do it at the same time."""
        organisation_ids = [row.organisation_id for row in await self.database.look(_EXPIRED, now=now)]
        if not organisation_ids:
            return 0
        async with self.database.transaction() as connection:
            balances = await self._lock_wallets(connection, organisation_ids)
            postings = self._expiries((await self._purses(connection, balances)).values(), now)
            if postings:
                await self._write(connection, postings, now)
        return len(organisation_ids)

    async def grants(
        self, organisation_id: str, after: tuple[Any, ...] | None, limit: int, *, spent: bool
    ) -> Sequence[Any]:
        """Return grants in the order they are used up, those after `after`, with their notes."""
        # A grant that never expires comes after every one that does.
        expiry = sa.func.coalesce(credit_grant.c.expires_at, sa.literal(2**62))
        order = (credit_grant.c.priority, expiry, credit_grant.c.created_at, credit_grant.c.id)
        query = (
            sa.select(credit_grant, ledger_transaction.c.note, expiry.label("expiry"))
            .join(ledger_transaction, ledger_transaction.c.id == credit_grant.c.id)
            .where(credit_grant.c.organisation_id == organisation_id)
        )
        if not spent:
            query = query.where(credit_grant.c.remaining > 0)
        if after is not None:
            query = query.where(sa.tuple_(*order) > sa.tuple_(*(sa.literal(value) for value in after)))
        async with self.database.reading() as connection:
            return (await connection.execute(query.order_by(*order).limit(limit))).all()


def _posting(grant: Grant) -> Posting:
    return Posting(grant.id, "grant", grant.organisation_id, grant.fingerprint, grant.actor, grant.note)


def _grant_row(grant: Grant, now: int) -> dict[str, Any]:
    return {
        "id": grant.id,
        "organisation_id": grant.organisation_id,
        "kind": grant.kind,
        "source": grant.source,
        "priority": grant.priority,
        "amount": grant.amount,
        "remaining": 0,
        "expires_at": grant.expires_at,
        "created_at": now,
    }
