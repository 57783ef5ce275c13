"""Many workers that do anything with one set of books at the same time, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Usage

from services.billing.domain.correction import Request
from services.billing.domain.errors import BillingError
from services.billing.domain.grant import Grant
from services.billing.domain.limit import Limit
from services.billing.store import Store
from services.billing.store.budgets import BudgetStore
from services.billing.store.checks import check_ledger
from services.billing.store.slices import Wanted
from services.billing.store.tables import account, hold, lease, usage_event
from services.common.rpc import RpcError
from tests.support.billing import assert_books_balance, charge
from tests.support.budgets import World

WORKERS = 32
# How many kinds of operations a storm has to consist of, and what a busy machine may take longer for that.
KINDS, PATIENCE_S = 12, 60
ORGANISATIONS = 4
SECOND = 1_000_000
# Refusals are answers; anything else, a deadlock above all, ends the run.
ANSWERS = (BillingError, RpcError)
# Operations that answer a repeated call as they did the first time, whatever happens in between.
STEADY = ("release", "refund", "correct", "grant", "lower", "set_budget")
# Later than every expiry.
NEVER = 4 * 10**9 * SECOND


@dataclass
class Storm:
    """The run: what exists so far, shared by all workers so that they meet."""

    world: World
    seconds: float
    seed: int = 1
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    organisations: list[str] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    slices: list[str] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)
    charges: list[str] = field(default_factory=list)
    made: dict[str, Charge] = field(default_factory=dict)
    """Charges by their ids, as they were first sent."""

    @property
    def store(self) -> Store:
        return self.world.store

    @property
    def budgets(self) -> BudgetStore:
        return self.world.budgets

    async def run(self) -> None:
        """Do anything for `seconds`, in WORKERS tasks. Raises what no caller should ever see.

        Where that is too short for KINDS kinds of operations it goes on, up to PATIENCE_S.
        """
        self.organisations = [await self.world.organisation() for _ in range(ORGANISATIONS)]
        for organisation_id in self.organisations:
            await self.store.grant(Grant(f"{organisation_id}:start", organisation_id, 50_000), self.now)
        ends = time.monotonic() + self.seconds
        async with asyncio.TaskGroup() as tasks:
            for number in range(WORKERS):
                worker = Worker(self, random.Random(self.seed * 1000 + number), f"w{number}")
                tasks.create_task(worker.work(ends))

    @property
    def now(self) -> int:
        return self.world.micros


class Worker:
    """One of them: picks an operation, does it, and now and then does it again."""

    def __init__(self, storm: Storm, dice: random.Random, name: str) -> None:
        self.storm, self.dice, self.name = storm, dice, name
        self.made = 0
        self.actions: list[tuple[Callable[[], Awaitable[Callable[[], Awaitable[Any]]]], int]] = [
            (self.hold, 6),
            (self.extend, 3),
            (self.release, 2),
            (self.lease, 3),
            (self.close_lease, 1),
            (self.slices, 4),
            (self.lower, 1),
            (self.settle, 6),
            (self.refund, 2),
            (self.correct, 1),
            (self.grant, 2),
            (self.set_budget, 1),
            (self.sweep, 1),
        ]

    async def work(self, ends: float) -> None:
        choices, weights = zip(*self.actions, strict=True)
        while time.monotonic() < (ends if len(self.storm.done) >= KINDS else ends + PATIENCE_S):
            (action,) = self.dice.choices(choices, weights)
            again = self.dice.random() < 0.2
            try:
                call = await action()
                answers = [await call() for _ in range(1 + again)]
                # I6: where nothing another worker does can change the answer, it is the same again.
                assert answers[0] == answers[-1] or action.__name__ not in STEADY, action
                self.storm.done[action.__name__] += 1
            except ANSWERS as error:
                self.storm.refused[f"{action.__name__} {error.reason}"] += 1

    def new(self, kind: str) -> str:
        self.made += 1
        return f"{self.name}:{kind}{self.made}"

    def one_of(self, known: list[Any]) -> Any:
        """Return one of the latest, so that several workers take the same."""
        return self.dice.choice(known[-40:]) if known else "unknown"

    @property
    def organisation(self) -> str:
        return self.dice.choice(self.storm.organisations)

    async def hold(self) -> Callable[[], Awaitable[Any]]:
        key, organisation, amount = self.new("hold"), self.organisation, self.dice.randint(1, 600)
        ttl, now = self.dice.choice([1, 60]) * SECOND, self.storm.now
        self.storm.holds.append(key)
        return lambda: self.storm.store.create_hold(key, organisation, amount, ttl, now)

    async def extend(self) -> Callable[[], Awaitable[Any]]:
        key, amount, now = self.one_of(self.storm.holds), self.dice.randint(1, 900), self.storm.now
        return lambda: self.storm.store.extend_hold(key, amount, 60 * SECOND, now)

    async def release(self) -> Callable[[], Awaitable[Any]]:
        key = self.one_of(self.storm.holds)
        return lambda: self.storm.store.release_hold(key)

    async def lease(self) -> Callable[[], Awaitable[Any]]:
        key, organisation, now = self.new("lease"), self.organisation, self.storm.now
        wanted = self.dice.randint(100, 3000)
        self.storm.leases.append(key)
        return lambda: self.storm.store.acquire_lease(
            key, organisation, self.name, wanted, wanted // 4, 30 * SECOND, now
        )

    async def close_lease(self) -> Callable[[], Awaitable[Any]]:
        key = self.one_of(self.storm.leases)
        return lambda: self.storm.store.close_lease(key)

    async def slices(self) -> Callable[[], Awaitable[Any]]:
        limit = self.one_of(self.storm.limits)
        if limit == "unknown":
            return await self.set_budget()
        key, need, now = self.new("slice"), self.dice.randint(1, 900), self.storm.now
        self.storm.slices.append(key)
        wanted = Wanted(key, limit.id, need, need, 0)
        return lambda: self.storm.budgets.acquire(
            limit.organisation_id, self.name, [wanted], now, now + 30 * SECOND
        )

    async def lower(self) -> Callable[[], Awaitable[Any]]:
        totals = {self.one_of(self.storm.slices): self.dice.randint(0, 100) for _ in range(3)}
        return lambda: self.storm.budgets.lower(totals)

    async def settle(self) -> Callable[[], Awaitable[Any]]:
        """Capture, spend, or charge late: for several organisations at once."""
        batch = []
        for _ in range(self.dice.randint(1, 6)):
            organisation, kind = self.organisation, self.dice.randrange(3)
            fields: dict[str, Any] = {}
            if kind == 0:
                fields["hold_id"] = self.one_of(self.storm.holds)
            elif kind == 1:
                fields["lease_id"] = self.one_of(self.storm.leases)
            if self.storm.slices:
                fields["slice_ids"] = [self.one_of(self.storm.slices)]
            again = self.storm.charges and self.dice.random() < 0.1
            key = self.one_of(self.storm.charges) if again else self.new("charge")
            if again and self.dice.random() < 0.8:
                batch.append(self.storm.made[key])
                continue
            self.storm.charges.append(key)
            made = charge(
                key,
                self.dice.randint(0, 300),
                organisation,
                provider=f"p{self.dice.randrange(2)}",
                cost_nano_credits=self.dice.randint(0, 300),
                rounding_pico_credits=self.dice.randint(0, 999),
                usage=Usage(output_total=self.dice.randint(0, 50)),
                **fields,
            )
            made.at.FromMicroseconds(self.storm.now // 1000 * 1000)
            batch.append(made)
            self.storm.made.setdefault(key, made)
        now = self.storm.now
        return lambda: self.storm.store.settle(batch, now)

    async def refund(self) -> Callable[[], Awaitable[Any]]:
        request = Request(self.new("refund"), self.one_of(self.storm.charges), self.dice.choice([0, 10]))
        now = self.storm.now
        return lambda: self.storm.store.refund_charge(request, now)

    async def correct(self) -> Callable[[], Awaitable[Any]]:
        charge_id, amount = self.one_of(self.storm.charges), self.dice.randint(0, 200)
        request, now = Request(self.new("correct"), charge_id, amount, None), self.storm.now
        return lambda: self.storm.store.correct_charge(request, now)

    async def grant(self) -> Callable[[], Awaitable[Any]]:
        kind, lasts = self.dice.choice(["paid", "promo"]), self.dice.choice([None, 5 * SECOND])
        now = self.storm.now
        expires_at = None if lasts is None else now + lasts
        grant = Grant(
            self.new("grant"), self.organisation, self.dice.randint(1, 3000), kind=kind, expires_at=expires_at
        )
        return lambda: self.storm.store.grant(grant, now)

    async def set_budget(self) -> Callable[[], Awaitable[Any]]:
        organisation, measure = self.organisation, self.dice.choice(["credits", "requests", "tokens"])
        limit = Limit(
            id=self.new("limit"),
            organisation_id=organisation,
            scope="organisation",
            scope_id=organisation,
            measure=measure,
            window=self.dice.choice(["minute", "month"]),
            amount=self.dice.randint(100, 20_000),
        )
        now = self.storm.now

        async def change() -> Any:
            stored = await self.storm.budgets.set_limit(limit, "storm", now)
            self.storm.limits.append(stored)
            return stored.id

        return change

    async def sweep(self) -> Callable[[], Awaitable[Any]]:
        """Let time pass for everyone, and end what is over."""
        self.storm.world.passed_s += 0.2
        now = self.storm.now

        async def end() -> None:
            await self.storm.store.expire_holds(now)
            await self.storm.store.expire_grants(now)
            await self.storm.store.seal(now)
            await self.storm.budgets.close(await self.storm.budgets.expired(now), now)

        return end


async def settle_down(storm: Storm) -> None:
    """End all that is still open, as expiry would, and assert that nothing stays set aside."""
    store, budgets = storm.store, storm.budgets
    while await store.expire_holds(NEVER):
        pass
    for lease_id in await store.close_abandoned_leases(NEVER):
        assert lease_id
    while due := await budgets.expired(NEVER):
        await budgets.close(due, NEVER)
    await store.seal(NEVER)
    async with store.database.reading() as connection:
        reserved = account.c.held + account.c.leased != 0
        assert not (await connection.execute(sa.select(account).where(reserved))).all()
        for table in (hold, lease):
            still = sa.select(sa.func.count()).where(table.c.state == "open")
            assert await connection.scalar(still) == 0  # I4
        events = await connection.scalar(sa.select(sa.func.count()).select_from(usage_event))
    assert events


async def verify(storm: Storm) -> None:
    """Assert I1 to I8, I10, I12 and I14 over everything there is, and that the ledger's own check agrees."""
    await assert_books_balance(storm.store)
    await storm.world.check()  # I12
    report = await asyncio.to_thread(check_ledger, storm.store.database)
    assert report.ok, report.differences


async def deadlocks(storm: Storm) -> int:
    """Return how many deadlocks PostgreSQL has broken up; files have none."""
    if storm.store.database.sqlite:
        return 0
    query = sa.text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    async with storm.store.database.reading() as connection:
        return int((await connection.execute(query)).scalar_one())
