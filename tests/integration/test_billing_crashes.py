"""`kill -9` of a process at every named place of the store: what was begun is done once when tried again.

With several processes, callers and a PostgreSQL that dies: tests/e2e/test_money_crashes.py and its long form.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa
from omnihub.billing.v1.budget_pb2 import LimitTerms

from services.billing.domain.errors import AlreadyEndedError
from services.billing.domain.grant import Grant
from services.billing.domain.limit import read_limit
from services.billing.domain.plan import PlanBook
from services.billing.store import Store
from services.billing.store.budget_tables import budget_counter
from services.billing.store.budgets import BudgetStore
from services.billing.store.checks import check_ledger
from services.billing.store.held_limits import Drawing
from services.billing.store.slices import Wanted
from services.billing.store.tables import changes
from services.common.change_feed import ChangeFeed
from services.common.crash import CrashPoints
from tests.support.billing import charge, open_store, wallet
from tests.support.forks import importable, loaded
from tests.support.money_crashes import BILLING_PLACES, GATEWAY_PLACES

# Where limits are drawn on, and where a hold ends unused, which callers of a fleet cannot time.
STORE_PLACES = (*BILLING_PLACES, "after_release", "before_slice_commit", "after_slice_commit")
HELD, LEASED, CREDITS = 100, 1000, 10_000
TTL, NOW = 60_000_000, 1_780_000_000_000_000


async def live(url: str, organisation: str, crash_at: str = "") -> None:
    """Hold, lease, draw on limits, charge, and end it all; what is done already is not done again."""
    async with open_store(url) as store:
        budgets = BudgetStore(store.database, ChangeFeed(store.database, changes), PlanBook({}))
        store.limits = budgets
        store.crash = budgets.crash = CrashPoints(crash_at)
        for step in steps(store, budgets, organisation):
            with suppress(AlreadyEndedError):
                await step


def steps(store: Store, budgets: BudgetStore, organisation: str) -> list[Awaitable[object]]:
    drawing = Drawing((organisation, "", "", "key_1", "", ""), 0, NOW)
    wanted = Wanted(f"{organisation}:slice", f"{organisation}:limit", HELD, HELD, 0)
    ids = {name: f"{organisation}:{name}" for name in ("used", "unused", "lease", "slice")}
    charges = [
        charge(f"{organisation}:1", HELD, organisation, hold_id=ids["used"], key_id="key_1"),
        charge(f"{organisation}:2", HELD, organisation, lease_id=ids["lease"], slice_ids=[ids["slice"]]),
    ]
    for each in charges:
        each.at.FromMicroseconds(NOW)
    return [
        store.create_hold(ids["used"], organisation, HELD, TTL, NOW, drawing),
        store.create_hold(ids["unused"], organisation, HELD, TTL, NOW, drawing),
        store.acquire_lease(ids["lease"], organisation, "process", LEASED, LEASED, TTL, NOW),
        budgets.acquire(organisation, "process", [wanted], NOW, NOW + TTL),
        store.settle(charges, NOW),
        store.release_hold(ids["unused"]),
        store.close_lease(ids["lease"]),
        budgets.lower({ids["slice"]: 0}),
    ]


async def begin(url: str) -> None:
    async with open_store(url) as store:
        budgets = BudgetStore(store.database, ChangeFeed(store.database, changes), PlanBook({}))
        for organisation in STORE_PLACES:
            await store.welcome([Grant(f"grant:{organisation}", organisation, CREDITS)], 0)
            terms = LimitTerms(measure="credits", window="lifetime", amount="0.000010")
            limit = read_limit(terms, f"{organisation}:limit", organisation, "organisation", NOW)
            await budgets.set_limit(limit, "admin", NOW)


async def check(url: str) -> None:
    async with open_store(url) as store:
        for organisation in STORE_PLACES:
            assert await wallet(store, organisation) == (CREDITS - 2 * HELD, 0, 0), organisation
            query = sa.select(budget_counter.c.spent, budget_counter.c.leased).where(
                budget_counter.c.limit_id == f"{organisation}:limit"
            )
            async with store.database.reading() as connection:
                assert (await connection.execute(query)).one() == (2 * HELD, 0), organisation
        assert check_ledger(store.database).ok


def test_whatever_dies_is_done_once_when_it_is_tried_again(database_url: str) -> None:
    asyncio.run(begin(database_url))
    for place in STORE_PLACES:
        # Each place has an organisation of its own, which is called like it.
        victim = loaded().Process(target=_live_and_die, args=(database_url, place))
        with importable():
            victim.start()
        victim.join(60)
        assert victim.exitcode == -signal.SIGKILL, place
        asyncio.run(live(database_url, place))
    asyncio.run(check(database_url))


def _live_and_die(url: str, place: str) -> None:
    asyncio.run(live(url, place, place))


def test_no_place_is_forgotten() -> None:
    """Who names a place where a process can die also lets it die there."""
    named = set()
    for service in ("billing", "router"):
        for file in Path("services", service).rglob("*.py"):
            for passed in re.findall(r"pass_by\((.*)\)", file.read_text()):
                named |= set(re.findall(r'"(\w+)"', passed))
    assert named == {*STORE_PLACES, *GATEWAY_PLACES}
