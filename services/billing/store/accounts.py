"""Accounts: opening, closing, balances. What every other part of the store builds on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from services.billing.domain.accounts import (
    PLATFORM_ACCOUNTS,
    WALLET,
    family_of,
    kind_of,
    wallet_of,
)
from services.billing.domain.errors import NotFoundError
from services.billing.store.auditing import keep_audit
from services.billing.store.tables import account
from services.common.crash import CrashPoints
from services.common.db import Database

AVAILABLE = account.c.posted - account.c.held - account.c.leased
OPEN, CLOSED = "open", "closed"
# Statements of the paths that are walked for every request are made once: that costs more than to run them.
_ADD = (
    sa.update(account)
    .where(account.c.id == sa.bindparam("account_id"))
    .values(
        posted=account.c.posted + sa.bindparam("posted_sum"),
        held=account.c.held + sa.bindparam("held_sum"),
        leased=account.c.leased + sa.bindparam("leased_sum"),
    )
)
_LOCK_WALLETS = (
    sa.select(account.c.id, account.c.posted, account.c.held, account.c.leased, account.c.state)
    .where(account.c.id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(account.c.id)
    .with_for_update(key_share=True)
)


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account has, in nano-credits."""

    posted: int = 0
    held: int = 0
    leased: int = 0
    closed: bool = False

    @property
    def available(self) -> int:
        """Return what a new request can use."""
        return self.posted - self.held - self.leased


class Accounts:
    """The part of the store that every other part builds on."""

    def __init__(self, database: Database, in_flight_retry_after_s: float = 1.0) -> None:
        self.database = database
        self.in_flight_retry_after_s = in_flight_retry_after_s
        self.crash = CrashPoints()
        self._insert: Any = sqlite.insert if database.sqlite else postgresql.insert
        # Platform accounts known to exist: they are never deleted.
        self._opened: set[str] = set()

    async def balance(self, organisation_id: str) -> Balance:
        """Return the balance of an organisation; all zero when it has no account yet."""
        async with self.database.reading() as connection:
            return await self._balance(connection, wallet_of(organisation_id)) or Balance()

    async def open_system_accounts(self, now: int) -> None:
        """Make sure the platform's own accounts exist. Idempotent."""
        await self._open_platform(PLATFORM_ACCOUNTS, now)

    async def close_account(self, organisation_id: str, actor: str, note: str, now: int) -> bool:
        """Refuse every further hold, lease and grant; tells whether it was open. Raises NotFoundError."""
        return await self._set_state(organisation_id, CLOSED, actor, note, now)

    async def reopen_account(self, organisation_id: str, actor: str, note: str, now: int) -> bool:
        """Open a closed account; tells whether it was closed. Raises NotFoundError."""
        return await self._set_state(organisation_id, OPEN, actor, note, now)

    async def _set_state(self, organisation_id: str, state: str, actor: str, note: str, now: int) -> bool:
        wallet = wallet_of(organisation_id)
        async with self.database.transaction() as connection:
            change = sa.update(account).where(account.c.id == wallet, account.c.state != state)
            changed = await connection.scalar(change.values(state=state).returning(account.c.id))
            if changed is None and await self._balance(connection, wallet) is None:
                raise NotFoundError(
                    f"there is no organisation {organisation_id}", organisation_id=organisation_id
                )
            if changed is not None:
                await keep_audit(connection, f"account.{state}", organisation_id, wallet, actor, note, now)
        return changed is not None

    async def _insert_new(self, connection: AsyncConnection, table: sa.Table, row: dict[str, Any]) -> bool:
        """Insert a row unless its id exists; tell whether it was inserted."""
        # Drivers do not agree on how many rows an insert that did nothing has touched.
        inserted = await connection.execute(inserting_new(self._insert, table), row)
        return inserted.scalar_one_or_none() is not None

    async def _add(self, connection: AsyncConnection, sums: Mapping[str, Mapping[str, int]]) -> None:
        """Add to posted, held and leased of accounts.

        Organisations come first, each in the order of ids: the platform's accounts, which everybody
        wants, are locked for the shortest time.
        """
        rows = [
            {
                "account_id": account_id,
                "posted_sum": sums[account_id].get("posted", 0),
                "held_sum": sums[account_id].get("held", 0),
                "leased_sum": sums[account_id].get("leased", 0),
            }
            for account_id in sorted(sums, key=lambda name: (":" not in name, name))
            if any(sums[account_id].values())
        ]
        if rows:
            await connection.execute(_ADD, rows)

    async def _open(self, connection: AsyncConnection, organisation_ids: Iterable[str], now: int) -> None:
        """Make sure organisations have their accounts."""
        ids = sorted(set(organisation_ids))
        rows = [
            _account_row(name, organisation_id, kind, now)
            for organisation_id in ids
            for name, kind in [*family_of(organisation_id).items(), (wallet_of(organisation_id), WALLET)]
        ]
        if rows:
            rows.sort(key=lambda row: str(row["id"]))
            await connection.execute(self._insert(account).on_conflict_do_nothing(), rows)

    async def _open_platform(self, account_ids: Iterable[str], now: int) -> None:
        """Make sure accounts of the platform exist, in a transaction of its own."""
        missing = sorted(set(account_ids) - self._opened)
        if missing:
            rows = [_account_row(name, "", kind_of(name), now) for name in missing]
            async with self.database.transaction() as connection:
                await connection.execute(self._insert(account).on_conflict_do_nothing(), rows)
            self._opened.update(missing)

    async def _balance(self, connection: AsyncConnection, account_id: str) -> Balance | None:
        query = sa.select(account.c.posted, account.c.held, account.c.leased, account.c.state)
        row = (await connection.execute(query.where(account.c.id == account_id))).one_or_none()
        return None if row is None else Balance(row.posted, row.held, row.leased, row.state == CLOSED)

    async def _lock_wallets(
        self, connection: AsyncConnection, organisation_ids: Sequence[str]
    ) -> dict[str, Balance]:
        """Lock the wallets of organisations, in the order of their ids, and return their balances.

        Everything an organisation's credits consist of is changed only under this lock.
        """
        wallets = {wallet_of(organisation_id): organisation_id for organisation_id in organisation_ids}
        rows = await connection.execute(_LOCK_WALLETS, {"ids": list(wallets)})
        return {
            wallets[row.id]: Balance(row.posted, row.held, row.leased, row.state == CLOSED) for row in rows
        }


@cache
def inserting_new(insert: Any, table: sa.Table) -> Any:
    """Return the statement that inserts rows unless their ids exist, and returns those it has inserted."""
    return insert(table).on_conflict_do_nothing().returning(table.c.id)


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
        "state": OPEN,
        "carry_pico": 0,
    }
