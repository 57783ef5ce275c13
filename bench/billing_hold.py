"""Hold and capture on PostgreSQL: billing's store beside the very same statements through plain psycopg.

The statements are not written down here: those of one hold and one capture are recorded as they go to
the driver, and sent again with other ids. So the comparison stays true when the store changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy as sa

from services.billing.domain.grant import Grant
from services.billing.domain.plan import PlanBook
from services.billing.store import Store
from services.billing.store.budgets import BudgetStore
from services.billing.store.tables import changes
from services.common.change_feed import ChangeFeed
from services.common.ids import new_id
from tests.support.billing import charge, open_store

CLIENTS = (1, 8, 32)
ACCOUNTS = (1, 1000)
SECONDS = 1.5
CONNECTIONS = 20
TTL = 600 * 1_000_000
AMOUNT, COST = 2_000_000, 1_500_000
Pair = Callable[[str], Awaitable[None]]
"""Holds and captures for an organisation."""


@dataclass(frozen=True)
class Statement:
    """One statement as the driver got it."""

    text: str
    parameters: Any
    many: bool


async def _pair(store: Store, organisation_id: str) -> None:
    now = time.time_ns() // 1000
    hold_id = new_id("hold")
    await store.create_hold(hold_id, organisation_id, AMOUNT, TTL, now)
    made = charge(
        new_id("att"), COST, organisation_id, hold_id=hold_id, provider="wall", model="wall/m", key_id="key_1"
    )
    made.at.FromMicroseconds(now)
    await store.settle([made], now)


class Recorder:
    """Keeps the statements of one hold and one capture, and says them again for others."""

    def __init__(self) -> None:
        self.transactions: list[list[Statement]] = []
        self._known: list[str] = []

    async def record(self, store: Store, organisation_id: str) -> None:
        """Run one pair and keep what was said."""
        engine = store.database._engine.sync_engine
        said: list[Statement] = []

        def keep(connection: Any, cursor: Any, text: str, parameters: Any, context: Any, many: bool) -> None:
            said.append(Statement(text, parameters, many))

        def commit(connection: Any) -> None:
            self.transactions.append(said.copy())
            said.clear()

        sa.event.listen(engine, "before_cursor_execute", keep)
        sa.event.listen(engine, "commit", commit)
        await _pair(store, organisation_id)
        sa.event.remove(engine, "before_cursor_execute", keep)
        sa.event.remove(engine, "commit", commit)
        self._known = sorted(self._ids(organisation_id), key=len, reverse=True)

    def _ids(self, organisation_id: str) -> set[str]:
        values = {
            value
            for transaction in self.transactions
            for statement in transaction
            for value in _texts(statement.parameters)
        }
        new = {value for value in values if value.startswith(("hold_", "att_", "txn_"))}
        return new | {value for value in values if value.endswith(organisation_id)}

    def names(self, organisation_id: str, recorded: str) -> dict[str, str]:
        """Return what stands for each recorded id this time."""
        return {
            known: known.removesuffix(recorded) + organisation_id
            if known.endswith(recorded)
            else new_id(known.partition("_")[0])
            for known in self._known
        }


def _texts(parameters: Any) -> Iterator[str]:
    """Yield every text in the parameters of a statement, however they are nested."""
    if isinstance(parameters, str):
        yield parameters
    elif isinstance(parameters, dict):
        yield from _texts(list(parameters.values()))
    elif isinstance(parameters, list | tuple):
        for each in parameters:
            yield from _texts(each)


def _with(parameters: Any, names: dict[str, str]) -> Any:
    """Return parameters with other ids."""
    if isinstance(parameters, str):
        return names.get(parameters, parameters)
    if isinstance(parameters, dict):
        return {key: _with(value, names) for key, value in parameters.items()}
    if isinstance(parameters, list | tuple):
        return type(parameters)(_with(each, names) for each in parameters)
    return parameters


async def _say(
    connection: psycopg.AsyncConnection[Any], said: Sequence[Statement], names: dict[str, str]
) -> None:
    async with connection.transaction():
        for statement in said:
            async with connection.cursor() as cursor:
                if statement.many:
                    await cursor.executemany(statement.text, _with(statement.parameters, names))
                else:
                    await cursor.execute(statement.text, _with(statement.parameters, names))
                    if cursor.description is not None:
                        await cursor.fetchall()


async def rate(pair: Pair, clients: int, accounts: int) -> tuple[float, float]:
    """Return pairs per second and the CPU time of this process for one, in microseconds."""
    done = 0
    end = time.perf_counter() + SECONDS

    async def client(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await pair(organisation((number * 37 + done) % accounts))
            done += 1

    started, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return done / (time.perf_counter() - started), (time.process_time() - busy) / done * 1e6


def organisation(number: int) -> str:
    """Return the id of an organisation."""
    return f"org_{number:04d}"


async def compare(database_url: str, rounds: int) -> list[dict[str, Any]]:
    """Return one row for each number of clients and accounts, with the rates of each round."""
    found: list[dict[str, Any]] = []
    async with open_store(database_url) as store:
        store.limits = BudgetStore(store.database, ChangeFeed(store.database, changes), PlanBook({}))
        grants = [Grant(f"grant:{n}", organisation(n), 10**14) for n in range(max(ACCOUNTS))]
        await store.welcome(grants, 0)
        await _pair(store, organisation(0))
        recorder = Recorder()
        await recorder.record(store, organisation(0))

        async def plain(organisation_id: str) -> None:
            names = recorder.names(organisation_id, organisation(0))
            for said in recorder.transactions:
                connection = await idle.get()
                await _say(connection, said, names)
                idle.put_nowait(connection)

        async def stored(organisation_id: str) -> None:
            await _pair(store, organisation_id)

        # As many connections as the store may open.
        idle: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()
        for _ in range(CONNECTIONS):
            idle.put_nowait(
                await psycopg.AsyncConnection.connect(database_url, prepare_threshold=None, autocommit=True)
            )
        for accounts in ACCOUNTS:
            for clients in CLIENTS:
                row: dict[str, Any] = {"accounts": accounts, "clients": clients, "rounds": []}
                for _ in range(rounds):
                    ours = await rate(stored, clients, accounts)
                    theirs = await rate(plain, clients, accounts)
                    row["rounds"].append({"store": ours, "psycopg": theirs})
                found.append(row)
        while not idle.empty():
            await idle.get_nowait().close()
    return found
