"""What a ledger of a million rows costs: its check, and requests beside those of a small one."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import sqlalchemy as sa

from services.billing.domain.accounts import REVENUE, account_of, cogs_of, payable_of, wallet_of
from services.billing.domain.canonical import EVENT_CONTENT, FORMAT, events_digest
from services.billing.domain.grant import Grant
from services.billing.domain.plan import PlanBook
from services.billing.domain.usage import Period
from services.billing.store import Store
from services.billing.store.budgets import BudgetStore
from services.billing.store.checks import check_ledger
from services.billing.store.rollup import adding_up, roll_up
from services.billing.store.tables import (
    account,
    changes,
    credit_grant,
    grant_movement,
    ledger_entry,
    ledger_transaction,
    unsealed,
    usage_event,
)
from services.billing.store.usage import event_row
from services.common.bulk import BulkInsert
from services.common.change_feed import ChangeFeed
from tests.support.billing import charge, open_store

AMOUNT, COST = 1_500_000, 1_400_000
PROVIDER = "wall"
ENTRIES_OF_CHARGE = 4
# Rows of one statement.
SOME = 5000
START = 1_780_002_000_000_000
SECOND = 1_000_000
DAY_S = 86_400
# Of one batch.
CHARGES = 100


def batched(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in lists of SOME."""
    while some := list(itertools.islice(rows, SOME)):
        yield some


def organisation(number: int) -> str:
    """Return the id of an organisation."""
    return f"org_{number:04d}"


def events(count: int, organisations: int, keys: int, transactions: int) -> Iterator[dict[str, Any]]:
    """Yield rows of usage events; each of `transactions` booked as many of them as any other."""
    made = charge("", AMOUNT, provider=PROVIDER, cost_nano_credits=COST, task="chat", modality="text")
    made.usage.input_total, made.usage.output_total = 900, 300
    made.at.FromMicroseconds(START)
    pattern = dict(zip(usage_event.c.keys(), event_row(made, "", False, START), strict=True))
    for number in range(count):
        # A key asks ten times in a row.
        turn = number // 10
        yield pattern | {
            "id": f"att_{number:012d}",
            "organisation_id": organisation(number % organisations),
            "transaction_id": f"txn_{number % transactions:012d}",
            "key_id": f"key_{turn % keys}",
            "user_id": f"usr_{turn % 100}",
            "model": f"wall/m{turn % 20}",
            "at": START + number * DAY_S // count * SECOND,
        }


async def fill(store: Store, count: int, organisations: int, keys: int) -> None:
    """Book `count` charges, each in a transaction of its own, as `settle` would; no seals."""
    grants = [Grant(f"grant:{n}", organisation(n), 10**14) for n in range(organisations)]
    await store.welcome(grants, START)
    await store.settle([charge("first", 1, organisation(0), provider=PROVIDER)], START)
    of_event = EVENT_CONTENT[FORMAT]
    adding = adding_up(store.database)
    for rows in batched(events(count, organisations, keys, count)):
        transactions: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        movements: list[dict[str, Any]] = []
        for row in rows:
            organisation_id, transaction_id = row["organisation_id"], row["transaction_id"]
            fingerprint = events_digest([tuple(row[name] for name in of_event)])
            transactions.append(
                dict.fromkeys(("actor", "note", "refers_to"), "")
                | {"id": transaction_id, "kind": "charges", "fingerprint": fingerprint}
                | {"at": row["at"], "organisation_id": organisation_id, "format": FORMAT}
            )
            for account_id, amount in (
                (account_of("wallet.promo", organisation_id), -AMOUNT),
                (REVENUE, AMOUNT),
                (cogs_of(PROVIDER), -COST),
                (payable_of(PROVIDER), COST),
            ):
                entries.append({"transaction_id": transaction_id, "account_id": account_id, "amount": amount})
            grant_id = f"grant:{int(organisation_id[4:])}"
            movements.append(
                {"transaction_id": transaction_id, "position": 0, "grant_id": grant_id}
                | {"kind": "release", "amount": AMOUNT}
            )
        waiting = [{"transaction_id": row["transaction_id"]} for row in rows]
        await _insert(
            store,
            (ledger_transaction, transactions),
            (ledger_entry, entries),
            (grant_movement, movements),
            (unsealed, waiting),
            (usage_event, rows),
        )
        await _sum_up(store, adding, rows)
    await _project(store, count, organisations)


async def _sum_up(store: Store, adding: BulkInsert, rows: list[dict[str, Any]]) -> None:
    async with store.database.transaction() as connection:
        await roll_up(connection, adding, [tuple(row.values()) for row in rows])


async def _insert(store: Store, *parts: tuple[sa.Table, list[dict[str, Any]]]) -> None:
    async with store.database.transaction() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        for table, rows in parts:
            names = list(rows[0])
            columns = ", ".join(f'"{name}"' for name in names)
            if store.database.sqlite:
                marks = ", ".join("?" * len(names))
                values = [tuple(row.values()) for row in rows]
                await raw.executemany(f"INSERT INTO {table.name} ({columns}) VALUES ({marks})", values)
                continue
            target = f'COPY "{store.database.schema}".{table.name} ({columns}) FROM STDIN'
            async with raw.cursor() as cursor, cursor.copy(target) as copy:
                for row in rows:
                    await copy.write_row(tuple(row.values()))


async def _project(store: Store, count: int, organisations: int) -> None:
    """Make the balances what the new entries say."""
    totals: dict[str, int] = {}
    async with store.database.transaction() as connection:
        rows = await connection.execute(
            sa.select(ledger_entry.c.account_id, sa.func.sum(ledger_entry.c.amount)).group_by(
                ledger_entry.c.account_id
            )
        )
        totals = {row[0]: int(row[1]) for row in rows}
        for number in range(organisations):
            name = account_of("wallet.promo", organisation(number))
            totals[wallet_of(organisation(number))] = totals[name]
            left = sa.update(credit_grant).where(credit_grant.c.organisation_id == organisation(number))
            await connection.execute(left.values(remaining=totals[name]))
        change = sa.update(account).where(account.c.id == sa.bindparam("name"))
        await connection.execute(
            change.values(posted=sa.bindparam("total")),
            [{"name": name, "total": total} for name, total in totals.items()],
        )
        if not store.database.sqlite:
            await connection.exec_driver_sql("ANALYZE")


async def check_million(database_url: str, entries: int) -> dict[str, Any]:
    """Return how long filling, sealing and checking a ledger of so many entries took, in seconds."""
    async with open_store(database_url) as store:
        started = time.perf_counter()
        await fill(store, entries // ENTRIES_OF_CHARGE, 1000, 1000)
        filled = time.perf_counter()
        sealed_transactions = 0
        while some := await store.seal(START):
            sealed_transactions += some
        sealed, busy = time.perf_counter(), time.process_time()
        report = check_ledger(store.database)
        checked = time.perf_counter()
        assert report.ok, report.differences[:3]
        return {
            "entries": report.entries,
            "transactions": report.transactions,
            "usage_events": report.usage_events,
            "blocks": report.blocks,
            "fill_s": filled - started,
            "seal_s": sealed - filled,
            "seal_us_per_transaction": (sealed - filled) / sealed_transactions * 1e6,
            "check_s": checked - sealed,
            "check_cpu_s": time.process_time() - busy,
        }


async def grow(store: Store, count: int, keys: int) -> None:
    """Store usage events of one organisation and their sums, booked by few transactions."""
    adding = adding_up(store.database)
    for rows in batched(events(count, 1, keys, 1000)):
        await _insert(store, (usage_event, rows))
        await _sum_up(store, adding, rows)
    if not store.database.sqlite:
        async with store.database.transaction() as connection:
            await connection.exec_driver_sql("ANALYZE")


async def timed(work: Callable[[int], Awaitable[object]], times: int) -> float:
    """Return the median duration of a call in microseconds, once it is warm."""
    samples = []
    for number in range(-3, times):
        started = time.perf_counter()
        await work(number)
        samples.append((time.perf_counter() - started) * 1e6)
    return sorted(samples[3:])[times // 2]


Works = Mapping[str, tuple[Callable[[int], Awaitable[object]], int]]
"""What is asked, and how often to see how long it takes."""


@asynccontextmanager
async def sized(database_url: str, count: int, keys: int) -> AsyncIterator[Works]:
    """Yield what is asked of billing that knows so many events and keys."""
    async with open_store(database_url) as store:
        store.limits = BudgetStore(store.database, ChangeFeed(store.database, changes), PlanBook({}))
        await store.welcome([Grant("grant:0", organisation(0), 10**15)], START)
        await grow(store, count, keys)
        whole = Period(START, START + DAY_S * SECOND)
        # The events of hours that are not whole have to be looked at, except for totals.
        ragged = Period(START + 1800 * SECOND, START + (DAY_S - 1800) * SECOND)
        batches = itertools.count(1)

        def usage(period: Period, group: str) -> Callable[[int], Awaitable[object]]:
            async def work(number: int) -> None:
                await store.usage(organisation(0), period, group, None, 100)

            return work

        def settle(of_keys: int) -> Callable[[int], Awaitable[object]]:
            async def work(number: int) -> None:
                booked = next(batches)
                batch = [
                    charge(f"new_{booked}_{n}", 100, organisation(0), provider=PROVIDER)
                    for n in range(CHARGES)
                ]
                for n, each in enumerate(batch):
                    each.key_id = f"key_{(booked * CHARGES + n) % of_keys}"
                await store.settle(batch, START + booked * SECOND)

            return work

        async def balance(number: int) -> None:
            await store.balance(organisation(0))

        yield {
            "ListUsage, total of a day": (usage(whole, ""), 20),
            "ListUsage, a day by model": (usage(whole, "model"), 20),
            "ListUsage, total, from half past to half past": (usage(ragged, ""), 20),
            "GetBalance": (balance, 50),
            f"settle {CHARGES} charges of 10 keys": (settle(10), 7),
            # Each key of a batch is a row of sums: that is what they cost, not that others are known.
            f"settle {CHARGES} charges of {CHARGES} keys": (settle(CHARGES), 7),
        }


async def compared(
    databases: Sequence[str], sizes: Sequence[tuple[int, int]], rounds: int
) -> dict[str, list[list[float]]]:
    """Return microseconds of what is asked, for each size.

    In turns, so that what else the machine does meets all sizes alike.
    """
    found: dict[str, list[list[float]]] = {}
    async with AsyncExitStack() as stack:
        known = [
            await stack.enter_async_context(sized(url, *size))
            for url, size in zip(databases, sizes, strict=True)
        ]
        for _ in range(rounds):
            for name in known[0]:
                samples = found.setdefault(name, [[] for _ in known])
                for each, works in zip(samples, known, strict=True):
                    each.append(await timed(*works[name]))
    return found
