"""Plans: what they allow, who is on which, and the credits they give each month."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from omnihub.billing.v1 import budget_service_pb2 as pb
from omnihub.billing.v1.budget_pb2 import LimitTerms
from omnihub.billing.v1.plan_pb2 import Plan

from services.billing.allowances import MonthlyAllowances
from services.billing.domain.errors import InvalidFieldError
from services.billing.domain.plan import read_book
from services.billing.plan_files import plan_book_of
from services.billing.settings import BillingSettings
from services.billing.store.tables import audit
from services.common.rpc import Identity, RpcError
from services.credits.money import NANO
from tests.support.budgets import World, admin, open_world

SHIPPED = {
    "free": {
        "monthly_credits": "1",
        "allowed_models": ["small/*"],
        "limits": [{"measure": "requests", "window": "day", "amount": "2"}],
    },
    "pro": {"monthly_credits": "20", "limits": [{"measure": "requests", "window": "day", "amount": "3"}]},
}
CONFIGURED = {"house": {"limits": [{"measure": "tokens", "window": "month", "amount": "10"}]}}


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with open_world(database_url, read_book(SHIPPED, CONFIGURED, "")) as opened:
        yield opened


async def assign(world: World, organisation_id: str, plan: str) -> Any:
    request = pb.AssignPlanRequest(organisation_id=organisation_id, plan=plan, note="asked for it")
    return await world.client.assign_plan(request, admin("org_platform", "platform"))


async def refused(awaitable: Any, reason: str) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


def test_what_is_shipped_can_be_read() -> None:
    book = plan_book_of(BillingSettings(default_plan="free"))
    assert set(book.plans) == {"free", "pro", "enterprise"}
    assert not book.plans["enterprise"].limits


def test_a_default_that_does_not_exist() -> None:
    with pytest.raises(InvalidFieldError, match="there is no plan 'gold'; known: free, pro"):
        read_book(SHIPPED, {}, "gold")


async def test_limits_of_a_plan_are_the_organisations(world: World) -> None:
    organisation = await world.organisation()
    await assign(world, organisation, "free")
    process, identity = world.replica(), Identity(organisation_id=organisation, key_id="key_1")
    for _ in range(2):
        process.finish(await process.begin(identity), 0)
    error = await refused(process.begin(identity), "BUDGET_LIMIT")
    assert error.metadata["limit_id"].startswith("plan:")
    known = process.budgets.rules.of(organisation)
    assert known is not None
    assert (known.plan, known.allowed_models) == ("free", ("small/*",))
    await world.settle()
    (found,) = (await world.client.list_limits(pb.ListLimitsRequest(), admin(organisation))).limits
    assert (found.managed_by, found.spent, found.terms.amount) == ("plan:free", "2", "2")
    delete = pb.DeleteLimitRequest(limit_id=found.limit_id)
    await refused(world.client.delete_limit(delete, admin(organisation)), "PRECONDITION_FAILED")
    # A larger plan counts what the smaller one did.
    await assign(world, organisation, "pro")
    await process.budgets.rules.reload([organisation])
    process.finish(await process.begin(identity), 0)
    await refused(process.begin(identity), "BUDGET_LIMIT")


async def test_a_default_plan_applies_to_whoever_has_none(database_url: str) -> None:
    async with open_world(database_url, read_book(SHIPPED, {}, "free")) as world:
        organisation, other = await world.organisation(), await world.organisation()
        process = world.replica()
        await process.budgets.rules.load()
        for each in (organisation, other):
            identity = Identity(organisation_id=each, key_id="key_1")
            for _ in range(2):
                process.finish(await process.begin(identity), 0)
            await refused(process.begin(identity), "BUDGET_LIMIT")
        await world.settle()
        plan = await world.client.get_plan(pb.GetPlanRequest(), admin(organisation))
        assert plan.plan.name == "free"
        await refused(
            world.client.delete_plan(pb.DeletePlanRequest(name="x" * 200), admin("a", "platform")),
            "INVALID_ARGUMENT",
        )


async def test_assignments_are_kept_and_audited(world: World) -> None:
    organisation = await world.organisation()
    for plan in ("free", "free", "pro", ""):
        await assign(world, organisation, plan)
    await refused(assign(world, organisation, "gold"), "NOT_FOUND")
    await refused(assign(world, "org_none", "pro"), "NOT_FOUND")
    request = pb.ListPlanAssignmentsRequest(organisation_id=organisation, page_size=2)
    page = await world.client.list_plan_assignments(request, admin("a", "platform"))
    request.page_token = page.next_page_token
    rest = await world.client.list_plan_assignments(request, admin("a", "platform"))
    made = [*page.assignments, *rest.assignments]
    assert [(each.plan, each.actor, each.note) for each in made] == [
        (plan, "usr_admin", "asked for it") for plan in ("", "pro", "free")
    ]
    async with world.database.reading() as connection:
        query = sa.select(audit.c.action).where(audit.c.organisation_id == organisation)
        assert list(await connection.scalars(query)) == ["assign_plan"] * 3


async def test_administrators_change_plans_but_not_those_of_the_file(world: World) -> None:
    platform = admin("org_platform", "platform")
    limits = [LimitTerms(measure="credits", window="day", amount="7.5")]
    plan = Plan(name="pro", display_name="Pro", monthly_credits="5", limits=limits)
    stored = (await world.client.set_plan(pb.SetPlanRequest(plan=plan), platform)).plan
    assert stored.managed_by == "administrator"
    listed = await world.client.list_plans(pb.ListPlansRequest(), platform)
    by_name = {each.name: each for each in listed.plans}
    assert by_name["pro"] == stored
    assert by_name["house"].managed_by == "file"
    plan.name = "house"
    await refused(world.client.set_plan(pb.SetPlanRequest(plan=plan), platform), "PRECONDITION_FAILED")
    await world.client.delete_plan(pb.DeletePlanRequest(name="pro"), platform)
    listed = await world.client.list_plans(pb.ListPlansRequest(), platform)
    assert {each.name: each.managed_by for each in listed.plans}["pro"] == "shipped"
    organisation = await world.organisation()
    plan.name = "custom"
    await world.client.set_plan(pb.SetPlanRequest(plan=plan), platform)
    await assign(world, organisation, "custom")
    await refused(
        world.client.delete_plan(pb.DeletePlanRequest(name="custom"), platform), "PRECONDITION_FAILED"
    )


async def test_monthly_credits_come_once_and_a_larger_plan_adds_the_difference(world: World) -> None:
    organisation, other = await world.organisation(), await world.organisation()

    async def grant(organisation_id: str, period: str, amount: int, expires_at: int) -> None:
        await world.store.grant_allowance(organisation_id, period, amount, expires_at, world.micros)

    allowances = MonthlyAllowances(world.budgets, grant, world.now)
    await assign(world, organisation, "free")
    for plan, balance in (("free", 1), ("pro", 20), ("free", 20), ("pro", 20)):
        await assign(world, organisation, plan)
        for _ in range(2):
            await allowances.grant_due()
        assert (await world.store.balance(organisation)).posted == balance * NANO
    # Granted, but not noted when the process died: the same again.
    async with world.database.transaction() as connection:
        await connection.execute(sa.text("UPDATE " + _allowance_table(world) + " SET granted = false"))
    await allowances.grant_due()
    assert (await world.store.balance(organisation)).posted == 20 * NANO
    assert (await world.store.balance(other)).posted == 0
    await world.advance(16 * 86_400)
    await allowances.grant_due()
    async with world.database.reading() as connection:
        periods = await connection.scalars(sa.text("SELECT period FROM " + _allowance_table(world)))
        assert sorted(periods) == ["2026-06", "2026-06:pro", "2026-07"]


def _allowance_table(world: World) -> str:
    return "plan_allowance" if world.database.sqlite else "billing.plan_allowance"
