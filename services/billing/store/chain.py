"""The hash chain: sealed transactions are tied to every one before them, so that a later change is found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from services.billing.domain.canonical import TRANSACTION_CONTENT, block_hash, transaction_digest
from services.billing.store.accounts import Accounts
from services.billing.store.tables import (
    elected_work,
    grant_movement,
    ledger_block,
    ledger_entry,
    ledger_head,
    ledger_seal,
    ledger_transaction,
    unsealed,
)

# Transactions of one block.
BLOCK = 1000


class Chain(Accounts):
    """Sealing, by whichever replica comes first."""

    async def seal(self, now: int) -> int:
        """Seal what is not sealed yet and return how many transactions that were, at most BLOCK.

        Any number of replicas may try: the hashes are computed without a lock, and only the block that
        follows the head as it was read is written.
        """
        async with self.database.reading() as connection:
            head = (await connection.execute(sa.select(ledger_head))).one()
            waiting = sa.select(unsealed.c.transaction_id).order_by(unsealed.c.transaction_id).limit(BLOCK)
            ids = sorted(await connection.scalars(waiting))
            if not ids:
                return 0
            rows = [(await connection.execute(query)).all() for query in contents_of(ids)]
        digests = await asyncio.to_thread(digests_of, *rows)
        number = head.number + 1
        sealed = block_hash(head.hash, number, (digests[each] for each in ids))
        async with self.database.transaction() as connection:
            follow = sa.update(ledger_head).where(
                ledger_head.c.number == head.number, ledger_head.c.hash == head.hash
            )
            elected = await connection.scalar(
                follow.values(number=number, hash=sealed).returning(ledger_head.c.id)
            )
            if elected is None:
                return 0
            block = {
                "number": number,
                "transactions": len(ids),
                "previous_hash": head.hash,
                "hash": sealed,
                "sealed_at": now,
            }
            await connection.execute(sa.insert(ledger_block), block)
            seals = [{"block": number, "position": at, "transaction_id": each} for at, each in enumerate(ids)]
            await connection.execute(sa.insert(ledger_seal), seals)
            await connection.execute(sa.delete(unsealed).where(unsealed.c.transaction_id.in_(ids)))
        return len(ids)

    async def elect(self, work: str, every: int, now: int) -> bool:
        """Tell whether this process is the one to do `work`, which is done once in `every` microseconds."""
        claim = sa.update(elected_work).where(
            elected_work.c.name == work, elected_work.c.done_at <= now - every
        )
        async with self.database.transaction() as connection:
            first = self._insert(elected_work).on_conflict_do_nothing()
            await connection.execute(first, {"name": work, "done_at": now - every})
            claimed = await connection.scalar(claim.values(done_at=now).returning(elected_work.c.name))
        return claimed is not None


def contents_of(ids: Sequence[str]) -> tuple[sa.Select[Any], sa.Select[Any], sa.Select[Any]]:
    """Return the queries for transactions, entries and movements that `digests_of` understands."""
    transactions = sa.select(*(ledger_transaction.c[name] for name in TRANSACTION_CONTENT))
    entries = sa.select(ledger_entry.c.transaction_id, ledger_entry.c.account_id, ledger_entry.c.amount)
    movements = sa.select(
        grant_movement.c.transaction_id,
        grant_movement.c.position,
        grant_movement.c.grant_id,
        grant_movement.c.kind,
        grant_movement.c.amount,
    )
    return (
        transactions.where(ledger_transaction.c.id.in_(ids)),
        entries.where(ledger_entry.c.transaction_id.in_(ids)),
        movements.where(grant_movement.c.transaction_id.in_(ids)),
    )


def digests_of(
    transactions: Iterable[Sequence[Any]],
    entries: Iterable[Sequence[Any]],
    movements: Iterable[Sequence[Any]],
) -> dict[str, str]:
    """Return the digest of each transaction."""
    entries_of: dict[str, list[Sequence[Any]]] = {}
    for transaction_id, *entry in entries:
        entries_of.setdefault(transaction_id, []).append(entry)
    movements_of: dict[str, list[Sequence[Any]]] = {}
    for transaction_id, *movement in movements:
        movements_of.setdefault(transaction_id, []).append(movement)
    return {
        row[0]: transaction_digest(row, entries_of.get(row[0], ()), movements_of.get(row[0], ()))
        for row in transactions
    }
