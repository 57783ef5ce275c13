"""Limits for tests: the real store and server, any number of router replicas, a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from omnihub.billing.v1 import budget_service_pb2 as pb
from omnihub.billing.v1.budget_pb2 import LimitTerms
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.chat_pb2 import Usage

from services.billing.app import MIGRATIONS
from services.billing.budget_server import BudgetServer
from services.billing.domain.grant import Grant
from services.billing.domain.plan import PlanBook
from services.billing.store import Store
from services.billing.store.budget_tables import budget_counter, budget_slice
from services.billing.store.budgets import BudgetStore
from services.billing.store.tables import changes, usage_event
from services.common.change_feed import ChangeFeed
from services.common.db import Database
from services.common.ids import new_id
from services.common.rpc import Call, Connector, Identity, Registry
from services.router.accounting.budget_rules import BudgetRules
from services.router.accounting.budgets import Budgets
from services.router.domain.limits import Drawn
from tests.support.fakes import FakeBilling

TTL_S = 30
RENEW_S = 20
# A Monday, in the middle of everything.
START = datetime(2026, 6, 15, 12, 0, 30, tzinfo=UTC)


@dataclass
class Running:
    """A request under way."""

    identity: Identity
    drawn: Drawn
    nano: int
    tokens: int
    run_id: str = ""


@dataclass
class World:
    """Billing's store of limits, and what replicas share: a clock and the journals of all of them."""

    database: Database
    store: Store
    budgets: BudgetStore
    client: Any = None
    passed_s: float = 0.0
    journals: list[Charge] = field(default_factory=list)
    breaking: list[Charge] = field(default_factory=list)
    """What billing fails at."""
    replicas: list[Replica] = field(default_factory=list)

    def now(self) -> datetime:
        return START + timedelta(seconds=self.passed_s)

    @property
    def micros(self) -> int:
        return int(self.now().timestamp() * 1_000_000)

    async def settle(self) -> Sequence[Charge]:
        """Book every charge that any replica has written, twice: again changes nothing. Return the others."""
        batch = [charge for charge in self.journals if charge not in self.breaking]
        if batch:
            self.journals = list(self.breaking)
            await self.store.settle(batch, self.micros)
            await self.store.settle(batch, self.micros)
        return self.breaking

    async def organisation(self) -> str:
        """Open the account of a new organisation."""
        organisation_id = new_id("org")
        await self.store.welcome([Grant(f"grant:{organisation_id}", organisation_id, 0)], self.micros)
        return organisation_id

    async def limit(self, organisation_id: str, measure: str, window: str, amount: str, **more: Any) -> Any:
        """Set a limit as the organisation's administrator."""
        terms = LimitTerms(measure=measure, window=window, amount=amount, **more)
        answer = await self.client.set_limit(pb.SetLimitRequest(terms=terms), admin(organisation_id))
        return answer.limit

    def replica(self) -> Replica:
        """Start another router process."""
        made = Replica(self)
        self.replicas.append(made)
        return made

    async def advance(self, seconds: float) -> None:
        """Let time pass for everyone; replicas do what they do meanwhile."""
        while seconds > 0:
            step = min(seconds, RENEW_S)
            self.passed_s += step
            seconds -= step
            for replica in self.replicas:
                await replica.budgets.renew()
                await replica.budgets.return_free()
        for replica in self.replicas[:1]:
            await replica.budgets.reap()

    async def check(self) -> None:
        """Assert what must hold at every moment: counters are what they stand for, and no limit is passed."""
        rest = sa.case(
            (budget_slice.c.granted > budget_slice.c.spent, budget_slice.c.granted - budget_slice.c.spent),
            else_=0,
        )
        async with self.database.reading() as connection:
            counters = (await connection.execute(sa.select(budget_counter))).all()
            leased = await connection.execute(
                sa.select(budget_slice.c.limit_id, budget_slice.c.window_start, sa.func.sum(rest))
                .where(budget_slice.c.state == "open")
                .group_by(budget_slice.c.limit_id, budget_slice.c.window_start)
            )
            by_key = {(row[0], row[1]): int(row[2]) for row in leased}
        for counter in counters:
            key = counter.limit_id, counter.window_start
            assert counter.leased == by_key.get(key, 0), key

    async def spent(self, organisation_id: str, start: int, end: int | None) -> tuple[int, int, int]:
        """Return credits, requests and tokens of all usage events of a window."""
        query = sa.select(
            sa.func.coalesce(sa.func.sum(usage_event.c.amount), 0),
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(usage_event.c.input_total + usage_event.c.output_total), 0),
        ).where(usage_event.c.organisation_id == organisation_id, usage_event.c.at >= start)
        if end is not None:
            query = query.where(usage_event.c.at < end)
        async with self.database.reading() as connection:
            row = (await connection.execute(query)).one()
        return int(row[0]), int(row[1]), int(row[2])


class Replica:
    """One router process, as far as limits go."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.running: list[Running] = []
        self.budgets = Budgets(
            world.client,
            lambda on_change: BudgetRules(FakeBilling(), world.client, on_change),
            new_id("proc"),
            world.settle,
            lambda: world.now().timestamp(),
            lambda: world.passed_s,
        )

    async def begin(self, identity: Identity, nano: int = 0, tokens: int = 0, run_id: str = "") -> Running:
        """Admit a request. Raises RpcError."""
        if self.budgets.rules.of(identity.organisation_id) is None:
            await self.budgets.rules.reload([identity.organisation_id])
        known = self.budgets.rules.of(identity.organisation_id)
        assert known is not None
        rules = self.budgets.rules_for(known, identity, "", run_id)
        drawn = await self.budgets.reserve(identity.organisation_id, rules, nano, tokens)
        request = Running(identity, drawn, nano, tokens, run_id)
        self.running.append(request)
        return request

    def finish(self, request: Running, nano: int, tokens: int = 0) -> Charge:
        """End a request: its charge is in the journal before its reservation goes."""
        identity = request.identity
        charge = Charge(
            charge_id=new_id("att"),
            organisation_id=identity.organisation_id,
            workspace_id=identity.workspace_id,
            project_id=identity.project_id,
            key_id=identity.key_id,
            run_id=request.run_id,
            amount_nano_credits=nano,
            usage=Usage(output_total=tokens),
            slice_ids=request.drawn.slice_ids,
        )
        charge.at.FromMilliseconds(request.drawn.at // 1000)
        self._world.journals.append(charge)
        self.budgets.spend(request.drawn, nano, tokens)
        self.running.remove(request)
        return charge

    def fail(self, request: Running) -> None:
        """End a request that produced nothing."""
        self.budgets.cancel(request.drawn)
        self.running.remove(request)

    def crash(self) -> None:
        """Lose everything but the journal."""
        self._world.replicas.remove(self)


def admin(organisation_id: str, *scopes: str) -> Call:
    """Return a call of an organisation's administrator."""
    granted = frozenset({"admin", "usage", *scopes})
    return Call("req_test", Identity(organisation_id=organisation_id, user_id="usr_admin", scopes=granted))


@asynccontextmanager
async def open_world(
    database_url: str, plans: PlanBook | None = None, store: type[BudgetStore] = BudgetStore
) -> AsyncIterator[World]:
    """Yield a world over a migrated database."""
    database = Database(database_url, "billing")
    await database.migrate(MIGRATIONS)
    books = Store(database)
    await books.open_system_accounts(0)
    budgets = store(database, ChangeFeed(database, changes), plans or PlanBook({}))
    books.limits = budgets
    world = World(database, books, budgets)
    registry = Registry()
    registry.add(BudgetService, BudgetServer(budgets, TTL_S, world.now))
    world.client = Connector(registry, {}).connect(BudgetService, "billing")
    try:
        yield world
    finally:
        await database.close()


async def outcomes(requests: Sequence[Any]) -> list[Any]:
    """Run requests at the same time and return their results, or errors."""
    return await asyncio.gather(*requests, return_exceptions=True)
