"""The checker counts anew what every window of a limit has used, from the usage events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import sqlalchemy as sa
from omnihub.billing.v1 import budget_service_pb2 as pb

from services.billing.domain.difference import Difference
from services.billing.domain.plan import PlanBook, read_book
from services.billing.store import budget_check
from services.billing.store.budget_tables import budget_counter
from services.billing.store.checks import check_ledger
from services.billing.store.tables import usage_event
from services.common.rpc import Identity
from services.credits.money import NANO
from tests.support.billing import tamper
from tests.support.budgets import World, admin, open_world

PLANS = {
    "house": {
        "limits": [
            {"measure": "tokens", "window": "month", "amount": "1000"},
            {"measure": "concurrency", "amount": "9"},
        ]
    }
}
LIMITS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("credits", "total", {}),
    ("credits", "lifetime", {"scope": "key", "scope_id": "key_1"}),
    ("tokens", "month", {"scope": "workspace", "scope_id": "ws_1"}),
    ("requests", "minute", {"scope": "project", "scope_id": "proj_1"}),
    ("requests", "day", {"enforcement": "soft", "scope": "run", "scope_id": "run_1"}),
)


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with open_world(database_url, read_book({}, PLANS, "house")) as opened:
        yield opened


async def used(world: World) -> str:
    """Use something of limits of every kind, in two minutes and by two who have no limits of their own."""
    organisation = await world.organisation()
    process = world.replica()
    identity = Identity(
        organisation_id=organisation, key_id="key_1", workspace_id="ws_1", project_id="proj_1"
    )
    # Before the limits: what is lifelong counts it, and what is total does not.
    process.finish(await process.begin(identity, NANO, 9), NANO, 9)
    await world.settle()
    await world.advance(1)
    for measure, window, more in LIMITS:
        await world.limit(organisation, measure, window, "1000", **more)
    await process.budgets.rules.reload([organisation])
    other = replace(identity, key_id="key_2", project_id="")
    for who, run_id in ((identity, "run_1"), (identity, ""), (other, "run_1")):
        process.finish(await process.begin(who, NANO, 7, run_id), NANO, 7)
        cached = process.finish(await process.begin(who, 0, 0, run_id), 0, 100)
        cached.cached, cached.cost_source = True, "cache"
        await world.settle()
        await world.advance(60)
    return organisation


def found(world: World, plans: PlanBook | None = None) -> list[Difference]:
    return check_ledger(world.database, plans or world.budgets.plan_book).differences


async def test_counters_are_what_the_events_come_to(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await used(world)
    await used(world)
    async with world.database.reading() as connection:
        counters = await connection.scalar(sa.select(sa.func.count()).select_from(budget_counter))
    assert counters == 2 * (len(LIMITS) + 3)
    assert found(world) == []
    monkeypatch.setattr(budget_check, "TOGETHER", 2)
    assert found(world) == []


async def test_counters_that_were_changed_are_found(world: World) -> None:
    await used(world)
    moved = budget_counter.c.spent > 0
    async with world.database.reading() as connection:
        rows = (await connection.execute(sa.select(budget_counter).where(moved))).all()
    await tamper(world.store, sa.update(budget_counter).where(moved).values(spent=budget_counter.c.spent - 1))
    differences = {(each.rule, each.subject, each.expected, each.found) for each in found(world)}
    # Its slices tell of some of them, too.
    assert {each for each in differences if each[0] != "budget_slices_spent"} == {
        ("budget_spent", f"{row.limit_id} {row.window_start}", str(row.spent), str(row.spent - 1))
        for row in rows
    }
    # All limits and the plan's, that of a minute in two windows.
    assert len({row.limit_id for row in rows}) == len(LIMITS) + 1
    assert len(rows) == len(LIMITS) + 2


async def test_an_event_that_is_gone_is_found_in_every_counter(world: World) -> None:
    organisation = await used(world)
    await tamper(world.store, sa.delete(usage_event).where(usage_event.c.organisation_id == organisation))
    wrong = {each.subject.split()[0] for each in found(world) if each.rule == "budget_spent"}
    assert len(wrong) == len(LIMITS) + 1


async def test_what_a_plan_no_longer_says_is_not_counted_any_more(world: World) -> None:
    organisation = await used(world)
    small = {**PLANS, "small": {"limits": [{"measure": "requests", "window": "day", "amount": "100"}]}}
    world.budgets.plan_book = plans = read_book({}, small, "house")
    assign = pb.AssignPlanRequest(organisation_id=organisation, plan="small")
    await world.client.assign_plan(assign, admin("org_platform", "platform"))
    process = world.replica()
    process.finish(await process.begin(Identity(organisation_id=organisation), NANO, 7), NANO, 7)
    await world.settle()
    assert found(world, plans) == []
    await tamper(world.store, sa.update(budget_counter).values(spent=budget_counter.c.spent + 1))
    plans_found = {each.subject.split(":")[3] for each in found(world, plans) if each.subject[:5] == "plan:"}
    # That of the tokens of a month is still there, but of no plan that is in force.
    assert plans_found == {"requests"}
