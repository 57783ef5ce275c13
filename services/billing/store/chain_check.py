"""Walks the hash chain, block by block, and finds what was changed after it was sealed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from services.billing.domain.canonical import EVENT_CONTENT, GENESIS, block_hash, events_digest
from services.billing.domain.difference import Difference
from services.billing.store.chain import contents_of, digests_of
from services.billing.store.tables import (
    ledger_block,
    ledger_head,
    ledger_seal,
    ledger_transaction,
    unsealed,
    usage_event,
)

RULE = "chain"
LISTED = 1000
# Ids of one statement.
SOME = 500


def check_chain(connection: sa.Connection) -> Iterator[Difference]:
    """Yield what does not fit, over the snapshot of `connection`."""
    previous, number = GENESIS, 0
    blocks = connection.execute(sa.select(ledger_block).order_by(ledger_block.c.number)).all()
    for block in blocks:
        number += 1
        if block.number != number:
            yield Difference(RULE, f"block {number}", "a block", "none")
            number = block.number
        if block.previous_hash != previous:
            yield Difference(RULE, f"block {number}", f"follows {previous}", f"follows {block.previous_hash}")
        yield from _check_block(connection, block)
        previous = block.hash
    head = connection.execute(sa.select(ledger_head)).one_or_none()
    found = f"{head.number} {head.hash}" if head is not None else "none"
    if found != f"{number} {previous}":
        yield Difference(RULE, "head", f"{number} {previous}", found)
    yield from _outside(connection)


def _check_block(connection: sa.Connection, block: Any) -> Iterator[Difference]:
    seals = sa.select(ledger_seal.c.transaction_id).where(ledger_seal.c.block == block.number)
    ids = list(connection.scalars(seals.order_by(ledger_seal.c.position)))
    digests: dict[str, str] = {}
    for first in range(0, len(ids), SOME):
        part = ids[first : first + SOME]
        transactions, entries, movements = (connection.execute(query).all() for query in contents_of(part))
        digests |= digests_of(transactions, entries, movements)
        yield from _check_events(connection, transactions)
    for missing in [each for each in ids if each not in digests]:
        yield Difference(RULE, missing, f"a transaction of block {block.number}", "none")
    sealed = block_hash(block.previous_hash, block.number, (digests.get(each, "") for each in ids))
    if sealed != block.hash or len(ids) != block.transactions:
        yield Difference(RULE, f"block {block.number}", sealed, block.hash)


def _check_events(connection: sa.Connection, transactions: Any) -> Iterator[Difference]:
    """Compare the events of transactions with the digest that each transaction carries."""
    formats: dict[int, dict[str, str]] = {}
    for row in transactions:
        if row.kind == "charges" and row.format in EVENT_CONTENT:
            formats.setdefault(row.format, {})[row.id] = row.fingerprint
    for form, expected in formats.items():
        query = sa.select(
            usage_event.c.transaction_id, *(usage_event.c[name] for name in EVENT_CONTENT[form])
        )
        query = query.where(usage_event.c.transaction_id.in_(expected)).order_by(usage_event.c.transaction_id)
        digests = {
            transaction_id: events_digest(tuple(row[1:]) for row in rows)
            for transaction_id, rows in groupby(connection.execute(query), key=lambda row: row[0])
        }
        for transaction_id, fingerprint in expected.items():
            digest = digests.get(transaction_id, "no events")
            if digest != fingerprint:
                yield Difference(RULE, transaction_id, f"events {digest}", f"events {fingerprint}")


def _outside(connection: sa.Connection) -> Iterator[Difference]:
    """Yield transactions that are neither sealed nor waiting for it."""
    sealed = sa.exists().where(ledger_seal.c.transaction_id == ledger_transaction.c.id)
    waiting = sa.exists().where(unsealed.c.transaction_id == ledger_transaction.c.id)
    query = sa.select(ledger_transaction.c.id).where(~sealed, ~waiting).limit(LISTED)
    for transaction_id in connection.scalars(query):
        yield Difference(RULE, transaction_id, "sealed or waiting to be", "neither")
