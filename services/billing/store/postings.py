"""Writing transactions: the only way entries, movements of grants and balances come into being."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.accounts import family_of, wallet_of
from services.billing.domain.canonical import FORMAT
from services.billing.domain.purse import RAISING, Posting, Purse, Slice
from services.billing.store.accounts import Accounts, Balance
from services.billing.store.tables import (
    credit_grant,
    grant_movement,
    ledger_entry,
    ledger_transaction,
    unsealed,
)
from services.common.ids import new_id

Sums = dict[str, dict[str, int]]
_INSERT_LEDGER_TRANSACTION = sa.insert(ledger_transaction)
_INSERT_LEDGER_ENTRY = sa.insert(ledger_entry)
_INSERT_GRANT_MOVEMENT = sa.insert(grant_movement)
_INSERT_UNSEALED = sa.insert(unsealed)
_CHANGE_GRANT = (
    sa.update(credit_grant)
    .where(credit_grant.c.id == sa.bindparam("grant_id"))
    .values(remaining=credit_grant.c.remaining + sa.bindparam("change"))
)
_GRANTS = sa.select(credit_grant).where(
    credit_grant.c.organisation_id.in_(sa.bindparam("organisations", expanding=True)),
    sa.or_(credit_grant.c.remaining > 0, credit_grant.c.id.in_(sa.bindparam("also", expanding=True))),
)


class Postings(Accounts):
    """What grants, settlement and corrections share."""

    async def _purses(
        self,
        connection: AsyncConnection,
        balances: Mapping[str, Balance],
        also: Iterable[str] = (),
    ) -> dict[str, Purse]:
        """Return the purses of organisations whose wallets are locked.

        They hold the grants of which something is left, and those named by `also`.
        """
        slices: dict[str, list[Slice]] = {}
        asked = {"organisations": list(balances), "also": list(also)}
        for row in await connection.execute(_GRANTS, asked):
            slices.setdefault(row.organisation_id, []).append(slice_of_row(row))
        return {
            organisation_id: Purse(
                organisation_id,
                slices.get(organisation_id, ()),
                balance.posted,
                balance.held + balance.leased,
            )
            for organisation_id, balance in balances.items()
        }

    def _expiries(self, purses: Iterable[Purse], now: int) -> list[Posting]:
        """Return the breakage of what has expired, one transaction for each organisation."""
        postings = []
        for purse in purses:
            posting = Posting(new_id("txn"), "breakage", purse.organisation_id)
            if purse.expire(posting, now):
                postings.append(posting)
        return postings

    async def _claim(self, connection: AsyncConnection, posting: Posting, now: int) -> str | None:
        """Insert the transaction's row unless its id exists; then return the fingerprint it came with."""
        if await self._insert_new(connection, ledger_transaction, _transaction_row(posting, now)):
            return None
        query = sa.select(ledger_transaction.c.fingerprint).where(ledger_transaction.c.id == posting.id)
        return str(await connection.scalar(query))

    async def _write(
        self,
        connection: AsyncConnection,
        postings: Sequence[Posting],
        now: int,
        *,
        claimed: str = "",
        reserved: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Write transactions and everything that follows from them.

        The wallets are locked. `claimed` is the transaction whose row exists; `reserved` is what
        happens to held and leased of wallets besides.
        """
        rows = [_transaction_row(posting, now) for posting in postings if posting.id != claimed]
        if rows:
            await connection.execute(_INSERT_LEDGER_TRANSACTION, rows)
        await self._add(connection, _sums(postings, reserved or {}))
        await self._book_entries(
            connection,
            [
                (posting.id, account_id, amount)
                for posting in postings
                for account_id, amount in posting.entries.items()
            ],
        )
        await self._move_grants(connection, postings)
        await connection.execute(_INSERT_UNSEALED, [{"transaction_id": p.id} for p in postings])

    async def _book_entries(
        self, connection: AsyncConnection, entries: Sequence[tuple[str, str, int]]
    ) -> None:
        """Write (transaction, account, amount) rows; those of a transaction sum to zero."""
        sums: dict[str, int] = {}
        for transaction_id, _, amount in entries:
            sums[transaction_id] = sums.get(transaction_id, 0) + amount
        if any(sums.values()):
            raise AssertionError(f"a transaction does not sum to zero: {sums}")
        rows = [
            {"transaction_id": transaction_id, "account_id": account_id, "amount": amount}
            for transaction_id, account_id, amount in entries
            if amount
        ]
        if rows:
            await connection.execute(_INSERT_LEDGER_ENTRY, rows)

    async def _move_grants(self, connection: AsyncConnection, postings: Sequence[Posting]) -> None:
        changes: dict[str, int] = {}
        rows = []
        for posting in postings:
            for position, movement in enumerate(posting.movements):
                sign = 1 if movement.kind in RAISING else -1
                changes[movement.grant_id] = changes.get(movement.grant_id, 0) + sign * movement.amount
                rows.append(
                    {
                        "transaction_id": posting.id,
                        "position": position,
                        "grant_id": movement.grant_id,
                        "kind": movement.kind,
                        "amount": movement.amount,
                    }
                )
        if rows:
            await connection.execute(
                _CHANGE_GRANT, [{"grant_id": each, "change": changes[each]} for each in sorted(changes)]
            )
            await connection.execute(_INSERT_GRANT_MOVEMENT, rows)


def slice_of_row(row: Any) -> Slice:
    """Return what is left of a grant."""
    return Slice(row.id, row.kind, row.priority, row.expires_at, row.created_at, row.remaining)


def _sums(postings: Iterable[Posting], reserved: Mapping[str, Mapping[str, int]]) -> Sums:
    sums: Sums = {account_id: dict(change) for account_id, change in reserved.items()}
    for posting in postings:
        family = family_of(posting.organisation_id)
        for account_id, amount in posting.entries.items():
            # The wallet is the sum of the accounts that entries go to.
            accounts = (
                (account_id, wallet_of(posting.organisation_id)) if account_id in family else (account_id,)
            )
            for each in accounts:
                change = sums.setdefault(each, {})
                change["posted"] = change.get("posted", 0) + amount
    return sums


def _transaction_row(posting: Posting, now: int) -> dict[str, Any]:
    return {
        "id": posting.id,
        "kind": posting.kind,
        "fingerprint": posting.fingerprint,
        "actor": posting.actor,
        "note": posting.note,
        "at": now,
        "organisation_id": posting.organisation_id,
        "refers_to": posting.refers_to,
        "format": FORMAT,
    }
