"""Holds that draw on limits, as those of jobs do: set aside with the hold, counted with its charge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from services.billing.domain.errors import BillingError
from services.billing.domain.grant import Grant
from services.billing.domain.plan import read_book
from services.billing.store.budget_tables import budget_counter, budget_slice
from services.billing.store.checks import check_ledger
from services.billing.store.held_limits import Drawing
from services.common.rpc import Identity
from services.credits.money import NANO
from services.router.accounting import budgets as router_budgets
from tests.support.billing import charge
from tests.support.budgets import World, open_world

TENTH = NANO // 10
TTL = 60_000_000
PLAN = {"house": {"limits": [{"measure": "credits", "window": "day", "amount": "0.35"}]}}


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with open_world(database_url, read_book({}, PLAN, "")) as opened:
        yield opened


async def rich(world: World, credits: int = 1000) -> str:
    organisation = await world.organisation()
    await world.store.grant(Grant(f"more:{organisation}", organisation, credits * NANO), world.micros)
    return organisation


def drawing(world: World, organisation: str, project: str = "proj_1", tokens: int = 0) -> Drawing:
    return Drawing((organisation, "", project, "key_1", "", ""), tokens, world.micros)


async def hold(world: World, name: str, organisation: str, amount: int = TENTH, **more: Any) -> None:
    drawn = drawing(world, organisation, **more)
    await world.store.create_hold(name, organisation, amount, TTL, world.micros, drawn)


async def refusal(
    world: World, name: str, organisation: str, amount: int = TENTH, **more: Any
) -> BillingError:
    with pytest.raises(BillingError) as caught:
        await hold(world, name, organisation, amount, **more)
    return caught.value


async def counted(world: World) -> list[tuple[int, int]]:
    async with world.database.reading() as connection:
        query = sa.select(budget_counter.c.spent, budget_counter.c.leased).order_by(budget_counter.c.limit_id)
        return [(row.spent, row.leased) for row in await connection.execute(query)]


async def charged(world: World, name: str, hold_id: str, organisation: str, amount: int, **more: Any) -> None:
    made = charge(name, amount, organisation, hold_id=hold_id, key_id="key_1", project_id="proj_1", **more)
    made.at.FromMicroseconds(world.micros)
    await world.store.settle([made], world.micros)


async def test_what_a_hold_draws_is_counted_and_freed_with_its_charge(world: World) -> None:
    organisation = await rich(world)
    await world.limit(organisation, "credits", "total", "0.35", scope="project", scope_id="proj_1")
    await hold(world, "h1", organisation)
    await hold(world, "h2", organisation)
    # Again it is the same hold.
    await hold(world, "h2", organisation)
    assert await counted(world) == [(0, 2 * TENTH)]
    error = await refusal(world, "h3", organisation, 2 * TENTH)
    assert (error.reason, error.metadata["scope_id"]) == ("IN_FLIGHT_BUDGET_EXHAUSTED", "proj_1")
    await charged(world, "c1", "h1", organisation, TENTH // 2)
    assert await counted(world) == [(TENTH // 2, TENTH)]
    # More than was held: it counts all the same.
    await charged(world, "c2", "h2", organisation, 2 * TENTH)
    assert await counted(world) == [(5 * TENTH // 2, 0)]
    # Of a hold that has ended.
    await charged(world, "c3", "h2", organisation, TENTH // 2)
    assert await counted(world) == [(3 * TENTH, 0)]
    error = await refusal(world, "h4", organisation)
    assert error.reason == "BUDGET_LIMIT"
    # A refused id stays refused, for the same reason.
    again = await refusal(world, "h4", organisation)
    assert (again.reason, again.metadata) == (error.reason, error.metadata)
    # Another project's limit it is not.
    await hold(world, "h5", organisation, project="proj_2")
    assert check_ledger(world.database).ok


async def test_requests_tokens_and_what_one_alone_needs(world: World) -> None:
    organisation = await rich(world)
    await world.limit(organisation, "tokens", "month", "100")
    await world.limit(organisation, "requests", "lifetime", "2")
    await world.limit(organisation, "concurrency", "", "1")
    assert (await refusal(world, "h0", organisation, tokens=101)).reason == "ESTIMATE_EXCEEDS_BUDGET"
    await hold(world, "h1", organisation, tokens=60)
    assert (await refusal(world, "h2", organisation, tokens=60)).reason == "IN_FLIGHT_BUDGET_EXHAUSTED"
    # A queue is no crowd: there is one slot, and two wait.
    await hold(world, "h3", organisation, tokens=40)
    assert (await refusal(world, "h4", organisation, tokens=0)).metadata["measure"] == "requests"
    await world.store.release_hold("h1")
    await hold(world, "h5", organisation, tokens=60)
    assert check_ledger(world.database).ok


async def test_what_is_drawn_ends_with_the_hold_however_it_ends(world: World) -> None:
    organisation = await rich(world)
    await world.limit(organisation, "credits", "total", "0.10")
    await hold(world, "released", organisation)
    await world.store.release_hold("released")
    await world.store.release_hold("released")
    await hold(world, "expired", organisation)
    await world.advance(61)
    assert await world.store.expire_holds(world.micros) == 1
    assert await counted(world) == [(0, 0)]
    # Nothing is drawn when the credits are missing.
    poor = await world.organisation()
    await world.limit(poor, "credits", "total", "0.10")
    assert (await refusal(world, "poor", poor)).reason == "INSUFFICIENT_CREDITS"
    assert [leased for _, leased in await counted(world)] == [0, 0]
    async with world.database.reading() as connection:
        open_ones = sa.select(budget_slice.c.id).where(budget_slice.c.state == "open")
        assert not (await connection.execute(open_ones)).all()
    assert check_ledger(world.database).ok


async def test_a_hold_is_raised_within_its_limits_and_lives_as_long(world: World) -> None:
    organisation = await rich(world)
    await world.budgets.assign(organisation, "house", "admin", "", world.micros)
    await world.limit(organisation, "credits", "total", "0.30")
    await hold(world, "h", organisation)
    await world.store.extend_hold("h", 3 * TENTH, TTL, world.micros)
    with pytest.raises(BillingError) as caught:
        await world.store.extend_hold("h", 4 * TENTH, TTL, world.micros)
    assert caught.value.reason == "IN_FLIGHT_BUDGET_EXHAUSTED"
    assert await counted(world) == [(0, 3 * TENTH)] * 2
    await world.advance(50)
    await world.store.extend_hold("h", 3 * TENTH, TTL, world.micros)
    await world.advance(50)
    # The reaper leaves alone what a living hold has drawn.
    assert await world.budgets.expired(world.micros) == []
    assert await counted(world) == [(0, 3 * TENTH)] * 2
    assert check_ledger(world.database, world.budgets.plan_book).ok


async def test_holds_and_slices_at_once_never_pass_a_limit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may keep some waiting for longer than a caller would.
    monkeypatch.setattr(router_budgets, "TIMEOUT_S", 60.0)
    organisation = await rich(world)
    await world.limit(organisation, "credits", "total", "1.00")
    process = world.replica()
    await process.budgets.rules.reload([organisation])
    identity = Identity(organisation_id=organisation, key_id="key_1")

    async def ask(number: int) -> None:
        if number % 2:
            process.finish(await process.begin(identity, TENTH), TENTH)
            return
        await hold(world, f"h{number}", organisation)
        if number % 4:
            await charged(world, f"c{number}", f"h{number}", organisation, TENTH)
        else:
            await world.store.release_hold(f"h{number}")

    async def settle() -> None:
        for _ in range(20):
            await world.settle()
            await world.budgets.close(await world.budgets.expired(world.micros), world.micros)
            await asyncio.sleep(0)

    done = await asyncio.gather(*map(ask, range(48)), settle(), return_exceptions=True)
    reasons = {getattr(each, "reason", each) for each in done if each is not None}
    assert reasons <= {"BUDGET_LIMIT", "IN_FLIGHT_BUDGET_EXHAUSTED"}, reasons
    await world.settle()
    ((spent, leased),) = await counted(world)
    assert 0 < spent <= NANO
    assert spent + leased <= NANO
    assert check_ledger(world.database).ok
