"""omnihub.billing.v1.BudgetService from its caller's side: who may do what, pages, wrong input."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from omnihub.billing.v1 import budget_service_pb2 as pb
from omnihub.billing.v1.budget_pb2 import LimitTerms
from omnihub.billing.v1.plan_pb2 import Plan

from services.common.rpc import Call, RpcError
from tests.support.budgets import World, admin, open_world

TERMS = LimitTerms(measure="credits", window="month", amount="5.50")
PLATFORM = admin("org_platform", "platform")


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with open_world(database_url) as opened:
        yield opened


async def refused(awaitable: Any, reason: str) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await awaitable
    assert caught.value.reason == reason, caught.value
    return caught.value


async def limits(world: World, call: Call, **fields: Any) -> Any:
    return await world.client.list_limits(pb.ListLimitsRequest(**fields), call)


async def test_setting_again_changes_the_same_limit(world: World) -> None:
    organisation = await world.organisation()
    first = (await world.client.set_limit(pb.SetLimitRequest(terms=TERMS), admin(organisation))).limit
    assert (first.terms.scope, first.terms.scope_id) == ("organisation", organisation)
    assert (first.terms.amount, first.terms.enforcement, first.spent, first.leased) == (
        "5.5",
        "hard",
        "0",
        "0",
    )
    assert first.resets_at.ToJsonString() == "2026-07-01T00:00:00Z"
    terms = LimitTerms(measure="credits", window="month", amount="7")
    again = (await world.client.set_limit(pb.SetLimitRequest(terms=terms), admin(organisation))).limit
    assert (again.limit_id, again.terms.amount) == (first.limit_id, "7")
    terms.enforcement = "soft"
    soft = (await world.client.set_limit(pb.SetLimitRequest(terms=terms), admin(organisation))).limit
    assert list(soft.terms.alert_at_percent) == [80, 100]
    page = await limits(world, admin(organisation), page_size=1)
    rest = await limits(world, admin(organisation), page_token=page.next_page_token)
    assert [each.limit_id for each in (*page.limits, *rest.limits)] == [first.limit_id, soft.limit_id]
    assert not rest.next_page_token


async def test_a_limit_of_the_platform_stays(world: World) -> None:
    organisation = await world.organisation()
    request = pb.SetLimitRequest(terms=TERMS, organisation_id=organisation)
    await refused(world.client.set_limit(request, admin(organisation)), "PERMISSION_DENIED")
    made = (await world.client.set_limit(request, PLATFORM)).limit
    assert made.managed_by == "platform"
    # The organisation's own limit of the same terms stands beside it.
    own = (await world.client.set_limit(pb.SetLimitRequest(terms=TERMS), admin(organisation))).limit
    assert own.limit_id != made.limit_id
    delete = pb.DeleteLimitRequest(limit_id=made.limit_id)
    await refused(world.client.delete_limit(delete, admin(organisation)), "PERMISSION_DENIED")
    # Another organisation neither sees nor removes it.
    await world.client.delete_limit(delete, admin("org_stranger"))
    await refused(limits(world, admin("org_stranger"), organisation_id=organisation), "PERMISSION_DENIED")
    assert len((await limits(world, PLATFORM, organisation_id=organisation)).limits) == 2
    for _ in range(2):
        await world.client.delete_limit(delete, PLATFORM)
    assert len((await limits(world, admin(organisation))).limits) == 1


async def test_wrong_input(world: World) -> None:
    organisation = await world.organisation()
    terms = LimitTerms(measure="credits", window="month", amount="five")
    error = await refused(
        world.client.set_limit(pb.SetLimitRequest(terms=terms), admin(organisation)), "INVALID_ARGUMENT"
    )
    assert [violation.field for violation in error.violations] == ["terms.amount"]
    nobody = pb.SetLimitRequest(terms=TERMS, organisation_id="org_none")
    await refused(world.client.set_limit(nobody, PLATFORM), "NOT_FOUND")
    await refused(world.client.set_limit(pb.SetLimitRequest(terms=TERMS), admin("")), "MISSING_CREDENTIAL")
    await refused(limits(world, admin(organisation), page_token="x"), "INVALID_ARGUMENT")
    await refused(limits(world, admin(organisation), page_size=2000), "INVALID_ARGUMENT")
    assert not (await limits(world, admin(organisation))).limits


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        (Plan(name="Gold!"), "plan.name"),
        (Plan(name="gold", monthly_credits="-1"), "plan.monthly_credits"),
        (Plan(name="gold", monthly_credits="many"), "plan.monthly_credits"),
        (Plan(name="gold", limits=[TERMS, TERMS]), "plan.limits"),
        (
            Plan(
                name="gold", limits=[LimitTerms(scope="key", scope_id="k", measure="requests", window="day")]
            ),
            "plan.limits",
        ),
        (Plan(name="gold", limits=[LimitTerms(measure="requests", window="day")]), "terms.amount"),
    ],
)
async def test_wrong_plans(world: World, plan: Plan, field: str) -> None:
    error = await refused(world.client.set_plan(pb.SetPlanRequest(plan=plan), PLATFORM), "INVALID_ARGUMENT")
    assert [violation.field for violation in error.violations] == [field]
    assert not (await world.client.list_plans(pb.ListPlansRequest(), PLATFORM)).plans


async def test_slices_of_the_same_totals_are_the_same(world: World) -> None:
    organisation = await world.organisation()
    limit = (await world.client.set_limit(pb.SetLimitRequest(terms=TERMS), admin(organisation))).limit
    request = pb.AcquireSlicesRequest(organisation_id=organisation, holder="proc_1")
    request.at.FromMicroseconds(world.micros)
    request.slices.add(slice_id="s1", limit_id=limit.limit_id, need=10**9, minimum_total=10**9)
    first = await world.client.acquire_slices(request, Call.internal())
    again = await world.client.acquire_slices(request, Call.internal())
    assert [each.granted_total for each in (*first.slices, *again.slices)] == [10**9] * 2
    lower = pb.ReturnSlicesRequest(slices=[pb.ReturnedSlice(slice_id="s1", granted_total=5)])
    lower.slices.add(slice_id="unknown", granted_total=5)
    for _ in range(2):
        await world.client.return_slices(lower, Call.internal())
        await world.check()
    assert (await limits(world, admin(organisation))).limits[0].leased == "0.000000005"
    # It is not expired: it stays open, and is renewed.
    await world.client.close_slices(pb.CloseSlicesRequest(slice_ids=["s1"]), Call.internal())
    renewed = await world.client.renew_slices(pb.RenewSlicesRequest(slice_ids=["s1", "x"]), Call.internal())
    assert list(renewed.renewed_slice_ids) == ["s1"]
    await world.advance(31)
    assert list(
        (await world.client.list_expired_slices(pb.ListExpiredSlicesRequest(), Call.internal())).slice_ids
    ) == ["s1"]
    await world.client.close_slices(pb.CloseSlicesRequest(slice_ids=["s1"]), Call.internal())
    await refused(world.client.acquire_slices(request, Call.internal()), "PRECONDITION_FAILED")
    request.slices[0].slice_id, request.slices[0].limit_id = "s2", "limit_none"
    await refused(world.client.acquire_slices(request, Call.internal()), "NOT_FOUND")
    await world.check()
