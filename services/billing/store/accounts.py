"""Accounts and the ledger: opening, booking, granting, balances."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.errors import IdempotencyKeyReusedError, InvalidFieldError, NotFoundError
from services.billing.domain.grant import Grant, allowance_grant
from services.billing.domain.ledger import LARGEST_AMOUNT, PROMO_EXPENSE, SYSTEM_ACCOUNTS, wallet_of
from services.billing.store.tables import account, ledger_entry, ledger_transaction
from services.common.db import Database

AVAILABLE = account.c.posted - account.c.held - account.c.leased


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account has, in nano-credits."""

    posted: int = 0
    held: int = 0
    leased: int = 0

    @property
    def available(self) -> int:
        """Return what a new request can use."""
        return self.posted - self.held - self.leased


class Accounts:
    """The part of the store that every other part builds on."""

    def __init__(self, database: Database, in_flight_retry_after_s: float = 1.0) -> None:
        self.database = database
        self.in_flight_retry_after_s = in_flight_retry_after_s
        self._insert: Any = sqlite.insert if database.sqlite else postgresql.insert

    async def balance(self, organisation_id: str) -> Balance:
        """Return the balance of an organisation; all zero when it has no account yet."""
        async with self.database.reading() as connection:
            return await self._balance(connection, wallet_of(organisation_id)) or Balance()

    async def open_system_accounts(self, now: int) -> None:
        """Make sure the platform's own accounts exist. Idempotent."""
        rows = [
            _account_row(account_id, "", kind, now) for account_id, kind in sorted(SYSTEM_ACCOUNTS.items())
        ]
        async with self.database.transaction() as connection:
            await connection.execute(self._insert(account).on_conflict_do_nothing(), rows)

    async def welcome(self, grants: Sequence[Grant], now: int) -> None:
        """Open the account of each organisation and book its first grant, once for ever."""
        wallets = {wallet_of(grant.organisation_id): grant for grant in grants}
        fresh = sa.select(account.c.id).where(account.c.id.in_(wallets), ~account.c.welcomed)
        async with self.database.transaction() as connection:
            await self._open(connection, (grant.organisation_id for grant in grants), now)
            unwelcomed = sorted(await connection.scalars(fresh))
            if unwelcomed:
                # Before the wallets, as everywhere.
                expense = sa.select(account.c.id).where(account.c.id == PROMO_EXPENSE)
                await connection.execute(expense.with_for_update(key_share=True))
            for wallet in unwelcomed:
                claim = sa.update(account).where(account.c.id == wallet, ~account.c.welcomed)
                claimed = await connection.execute(claim.values(welcomed=True).returning(account.c.id))
                if claimed.scalar_one_or_none() is not None and wallets[wallet].amount:
                    await self._book_grant(connection, wallets[wallet], now)

    async def grant(self, grant: Grant, now: int) -> Balance:
        """Book a grant once and return the balance.

        Raises NotFoundError, IdempotencyKeyReusedError, InvalidFieldError.
        """
        async with self.database.transaction() as connection:
            wallet = wallet_of(grant.organisation_id)
            if await self._balance(connection, wallet) is None:
                raise NotFoundError(
                    f"there is no organisation {grant.organisation_id}", organisation_id=grant.organisation_id
                )
            if not await self._book_grant(connection, grant, now):
                fingerprint = sa.select(ledger_transaction.c.fingerprint)
                known = await connection.scalar(fingerprint.where(ledger_transaction.c.id == grant.id))
                if known != grant.fingerprint:
                    raise IdempotencyKeyReusedError(
                        "the idempotency key was used for another grant; use a new key"
                    )
            balance = await self._balance(connection, wallet)
            if balance is None or balance.posted > LARGEST_AMOUNT:
                raise InvalidFieldError("amount", "would raise the balance above 1,000,000,000 credits")
            return balance

    async def grant_allowance(
        self, organisation_id: str, period: str, amount: int, expires_at: int, now: int, actor: str = ""
    ) -> Balance:
        """Give an organisation its allowance of a period, once however often it is asked for.

        `amount` in nano-credits, `expires_at` and `now` in microseconds since 1970. Returns the balance then.
        Raises NotFoundError, IdempotencyKeyReusedError (the period came with another amount or expiry),
        AccountClosedError, InvalidFieldError.
        """
        return await self.grant(allowance_grant(organisation_id, period, amount, expires_at, actor), now)

    async def _book_grant(self, connection: AsyncConnection, grant: Grant, now: int) -> bool:
        transaction = {
            "id": grant.id,
            "kind": "grant",
            "fingerprint": grant.fingerprint,
            "actor": grant.actor,
            "note": grant.note,
            "at": now,
        }
        if not await self._insert_new(connection, ledger_transaction, transaction):
            return False
        wallet = wallet_of(grant.organisation_id)
        sums = {wallet: {"posted": grant.amount}, PROMO_EXPENSE: {"posted": -grant.amount}}
        await self._add(connection, sums)
        entries = [(grant.id, wallet, grant.amount), (grant.id, PROMO_EXPENSE, -grant.amount)]
        await self._book_entries(connection, entries)
        return True

    async def _insert_new(self, connection: AsyncConnection, table: sa.Table, row: dict[str, Any]) -> bool:
        """Insert a row unless its id exists; tell whether it was inserted."""
        # Drivers do not agree on how many rows an insert that did nothing has touched.
        insert = self._insert(table).on_conflict_do_nothing().returning(table.c.id)
        return (await connection.execute(insert, row)).scalar_one_or_none() is not None

    async def _book_entries(
        self, connection: AsyncConnection, entries: Sequence[tuple[str, str, int]]
    ) -> None:
        """Write (transaction, account, amount) rows, the only way entries come into being.

        Their accounts are locked already: the check of a foreign key must not be the one to wait.
        """
        sums: dict[str, int] = {}
        for transaction_id, _, amount in entries:
            sums[transaction_id] = sums.get(transaction_id, 0) + amount
        if any(sums.values()):
            raise AssertionError(f"a transaction does not sum to zero: {sums}")
        rows = [
            {"transaction_id": transaction_id, "account_id": account_id, "amount": amount}
            for transaction_id, account_id, amount in entries
        ]
        await connection.execute(sa.insert(ledger_entry), rows)

    async def _add(self, connection: AsyncConnection, sums: Mapping[str, Mapping[str, int]]) -> None:
        """Add to posted, held and leased of accounts, in the order of their ids."""
        statement = (
            sa.update(account)
            .where(account.c.id == sa.bindparam("account_id"))
            .values(
                posted=account.c.posted + sa.bindparam("posted_sum"),
                held=account.c.held + sa.bindparam("held_sum"),
                leased=account.c.leased + sa.bindparam("leased_sum"),
            )
        )
        rows = [
            {
                "account_id": account_id,
                "posted_sum": sums[account_id].get("posted", 0),
                "held_sum": sums[account_id].get("held", 0),
                "leased_sum": sums[account_id].get("leased", 0),
            }
            for account_id in sorted(sums)
        ]
        if rows:
            await connection.execute(statement, rows)

    async def _open(self, connection: AsyncConnection, organisation_ids: Iterable[str], now: int) -> None:
        ids = sorted(set(organisation_ids))
        rows = [
            _account_row(wallet_of(organisation_id), organisation_id, "wallet", now)
            for organisation_id in ids
        ]
        if rows:
            await connection.execute(self._insert(account).on_conflict_do_nothing(), rows)

    async def _balance(self, connection: AsyncConnection, account_id: str) -> Balance | None:
        query = sa.select(account.c.posted, account.c.held, account.c.leased)
        row = (await connection.execute(query.where(account.c.id == account_id))).one_or_none()
        return None if row is None else Balance(row.posted, row.held, row.leased)


def _account_row(id: str, organisation_id: str, kind: str, now: int) -> dict[str, Any]:
    return {
        "id": id,
        "organisation_id": organisation_id,
        "kind": kind,
        "posted": 0,
        "held": 0,
        "leased": 0,
        "welcomed": False,
        "opened_at": now,
    }
