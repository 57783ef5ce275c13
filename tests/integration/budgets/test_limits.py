"""Limits over real databases: what is admitted, what is refused and how, and what is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from omnihub.billing.v1.usage_pb2 import Charge

from services.billing.store.budgets import BudgetStore
from services.common.rpc import Identity, RpcError
from services.credits.money import NANO
from services.credits.windows import window_end, window_start
from tests.support.budgets import World, open_world, outcomes

TENTH = NANO // 10


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    async with open_world(database_url) as opened:
        yield opened


def of(organisation_id: str, **more: str) -> Identity:
    return Identity(organisation_id=organisation_id, key_id="key_1", **more)


@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_thousand_at_once_admit_exactly_fifty(world: World, replicas: int) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "month", "5.00")
    processes = [world.replica() for _ in range(replicas)]
    for process in processes:
        await process.budgets.rules.reload([organisation])

    async def ask(number: int) -> None:
        process = processes[number % replicas]
        process.finish(await process.begin(of(organisation), TENTH), TENTH)

    done = await outcomes([ask(number) for number in range(1000)])
    assert done.count(None) == 50
    reasons = {error.reason for error in done if error is not None}
    assert reasons <= {"BUDGET_LIMIT", "IN_FLIGHT_BUDGET_EXHAUSTED"}
    await world.settle()
    (found,) = await world.budgets.limits(organisation, "", 10, world.micros)
    assert found[1].spent == 5 * NANO
    await world.check()


class WithoutGuard(BudgetStore):
    """Forgets the one condition that keeps slices within their limit."""

    def _guard(self, limit: Any, more: int) -> Any:
        return sa.true()

    async def _counters(self, *arguments: Any) -> Any:
        counters, made = await super()._counters(*arguments)
        return {key: type(usage)(0, 0) for key, usage in counters.items()}, made


async def test_without_the_guard_the_limit_would_be_passed(database_url: str) -> None:
    async with open_world(database_url, store=WithoutGuard) as world:
        organisation = await world.organisation()
        await world.limit(organisation, "credits", "month", "5.00")
        process = world.replica()
        done = await outcomes([process.begin(of(organisation), TENTH) for _ in range(100)])
        assert sum(not isinstance(each, RpcError) for each in done) > 50


async def refused(make: Callable[[], Any]) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await make()
    return caught.value


async def test_an_estimate_above_the_whole_limit(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "day", "1")
    error = await refused(lambda: world.replica().begin(of(organisation), 2 * NANO))
    assert (error.reason, error.row.http, error.retry_after_s) == ("ESTIMATE_EXCEEDS_BUDGET", 402, None)


async def test_a_window_that_is_used_up_says_when_it_resets(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "day", "1")
    process = world.replica()
    process.finish(await process.begin(of(organisation), NANO), NANO)
    # Before the charge is booked and after.
    for _ in range(2):
        error = await refused(lambda: process.begin(of(organisation), TENTH))
        assert (error.reason, error.row.http) == ("BUDGET_LIMIT", 403)
        assert error.metadata["resets_at"] == "2026-06-16T00:00:00Z"
        assert error.metadata["scope"] == "organisation"
        await world.settle()
    await world.advance(12 * 3600)
    process.finish(await process.begin(of(organisation), NANO), NANO)
    await world.settle()
    await world.check()


async def test_requests_under_way_hold_the_rest(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "total", "1")
    one, other = world.replica(), world.replica()
    running = await one.begin(of(organisation), NANO)
    error = await refused(lambda: other.begin(of(organisation), TENTH))
    assert (error.reason, error.row.http) == ("IN_FLIGHT_BUDGET_EXHAUSTED", 402)
    assert error.retry_after_s
    one.fail(running)
    await world.advance(3)
    await other.begin(of(organisation), TENTH)


async def test_per_minute(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "requests", "minute", "2")
    await world.limit(organisation, "tokens", "minute", "1000")
    process = world.replica()
    first = await process.begin(of(organisation), tokens=600)
    limits = {each.measure: each for each in process.budgets.rate_limits(first.drawn)}
    assert (limits["requests"].limit, limits["requests"].remaining) == (2, 1)
    assert (limits["tokens"].limit, limits["tokens"].remaining) == (1000, 400)
    assert limits["tokens"].resets_in_ms == 30_000
    error = await refused(lambda: process.begin(of(organisation), tokens=600))
    assert (error.reason, error.row.http, error.metadata["measure"]) == ("RATE_LIMITED", 429, "tokens")
    process.finish(first, 0, 300)
    process.finish(await process.begin(of(organisation), tokens=600), 0, 600)
    error = await refused(lambda: process.begin(of(organisation), tokens=10))
    assert error.metadata["measure"] == "requests"
    assert error.retry_after_s == 30
    await world.advance(31)
    await process.begin(of(organisation), tokens=1000)
    await world.settle()
    await world.check()


async def test_concurrency_is_free_again_when_requests_end_or_their_process_dies(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "concurrency", "", "2")
    one, other = world.replica(), world.replica()
    running = [await one.begin(of(organisation)) for _ in range(2)]
    error = await refused(lambda: other.begin(of(organisation)))
    assert (error.reason, error.row.http, error.retry_after_s) == ("RATE_LIMITED", 429, 1)
    one.finish(running[0], 0)
    await one.begin(of(organisation))
    one.crash()
    await world.advance(20)
    assert (await refused(lambda: other.begin(of(organisation)))).reason == "RATE_LIMITED"
    await world.advance(20)
    await world.budgets.free_slots(world.micros)
    await other.begin(of(organisation))
    await other.begin(of(organisation))
    await world.check()


async def test_all_scopes_of_a_request_must_agree(world: World) -> None:
    organisation = await world.organisation()
    for scope, scope_id in (("workspace", "ws_1"), ("project", "prj_1"), ("key", "key_1"), ("run", "run_1")):
        await world.limit(organisation, "requests", "lifetime", "3", scope=scope, scope_id=scope_id)
    await world.limit(organisation, "requests", "lifetime", "1", scope="run", scope_id="run_2")
    process = world.replica()
    identity = of(organisation, workspace_id="ws_1", project_id="prj_1")
    process.finish(await process.begin(identity, run_id="run_2"), 0)
    error = await refused(lambda: process.begin(identity, run_id="run_2"))
    assert (error.metadata["scope"], error.metadata["scope_id"]) == ("run", "run_2")
    assert error.metadata["resets_at"] == ""
    # What the refused request would have needed of the others was not taken.
    for _ in range(2):
        process.finish(await process.begin(identity, run_id="run_1"), 0)
    error = await refused(lambda: process.begin(identity, run_id="run_1"))
    assert error.metadata["scope"] in ("workspace", "project", "key")
    await process.begin(Identity(organisation_id=organisation, key_id="key_2", workspace_id="ws_2"))


async def test_a_limit_counts_what_was_used_before_it_was_set(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "requests", "lifetime", "1000")
    process = world.replica()
    for _ in range(3):
        process.finish(await process.begin(of(organisation), NANO), NANO)
    await world.settle()
    await world.advance(1)
    lifetime = await world.limit(organisation, "credits", "lifetime", "3.5")
    total = await world.limit(organisation, "credits", "total", "3.5")
    assert (lifetime.spent, total.spent) == ("3", "0")
    await process.budgets.rules.reload([organisation])
    error = await refused(lambda: process.begin(of(organisation), NANO))
    assert (error.reason, error.metadata["limit_id"]) == ("BUDGET_LIMIT", lifetime.limit_id)


async def test_a_running_request_gets_more_only_within_its_limits(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "hour", "1")
    await world.limit(organisation, "tokens", "hour", "100")
    process = world.replica()
    request = await process.begin(of(organisation), TENTH, 10)
    assert await process.budgets.extend(request.drawn, TENTH, 90)
    assert not await process.budgets.extend(request.drawn, TENTH, 1)
    assert not await process.budgets.extend(request.drawn, NANO, 0)
    # Also after its window has ended: it still counts there.
    await world.advance(3600)
    assert not await process.budgets.extend(request.drawn, NANO, 0)
    assert await process.budgets.extend(request.drawn, 8 * TENTH, 0)
    process.finish(request, NANO, 100)
    await world.settle()
    await world.check()
    at = request.drawn.at
    spent = await world.spent(organisation, window_start("hour", at), window_end("hour", at))
    assert spent == (NANO, 1, 100)


async def test_a_raised_limit_lets_requests_in_again(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "month", "1")
    process = world.replica()
    process.finish(await process.begin(of(organisation), NANO), NANO)
    await refused(lambda: process.begin(of(organisation), NANO))
    again = await world.limit(organisation, "credits", "month", "2")
    await process.budgets.rules.reload([organisation])
    process.finish(await process.begin(of(organisation), NANO), NANO)
    await world.settle()
    (found,) = await world.budgets.limits(organisation, "", 10, world.micros)
    assert (found[0].id, found[1].spent) == (again.limit_id, 2 * NANO)
    limit = await world.budgets.limit(again.limit_id)
    assert limit is not None
    await world.budgets.delete_limit(limit, "usr_1", world.micros)
    # A process that has not heard of it yet asks once more, and goes on without.
    error = await refused(lambda: process.begin(of(organisation), NANO))
    assert error.reason == "UNAVAILABLE"
    await process.begin(of(organisation), NANO)


async def test_a_dead_process_strands_its_slices_until_they_expire(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "month", "1")
    one, other = world.replica(), world.replica()
    one.finish(await one.begin(of(organisation), 4 * TENTH), 4 * TENTH)
    await one.begin(of(organisation), 4 * TENTH)
    one.crash()
    assert (await refused(lambda: other.begin(of(organisation), 5 * TENTH))).reason == (
        "IN_FLIGHT_BUDGET_EXHAUSTED"
    )
    await world.advance(40)
    # Its journal was booked first: what it had charged stays used, what it had reserved is free.
    await other.begin(of(organisation), 6 * TENTH)
    assert (
        await refused(lambda: other.begin(of(organisation), TENTH))
    ).reason == "IN_FLIGHT_BUDGET_EXHAUSTED"
    await world.check()


async def test_a_charge_that_billing_fails_at_keeps_only_its_own_slices(world: World) -> None:
    organisations = [await world.organisation() for _ in range(2)]
    dead, other = world.replica(), world.replica()
    charges = []
    for organisation in organisations:
        await world.limit(organisation, "credits", "month", "1")
        charges.append(dead.finish(await dead.begin(of(organisation), 4 * TENTH), 4 * TENTH))
        await dead.begin(of(organisation), 4 * TENTH)
    dead.crash()
    world.breaking = charges[:1]
    await world.advance(40)
    await other.begin(of(organisations[1]), 6 * TENTH)
    assert (await refused(lambda: other.begin(of(organisations[0]), 5 * TENTH))).reason == (
        "IN_FLIGHT_BUDGET_EXHAUSTED"
    )
    world.breaking = []
    await world.advance(40)
    await other.begin(of(organisations[0]), 6 * TENTH)
    await world.check()


async def test_alerts_come_once_per_window_and_threshold(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "day", "1", enforcement="soft")
    process = world.replica()
    for _ in range(12):
        process.finish(await process.begin(of(organisation), TENTH), TENTH)
        await world.settle()
    found = await world.budgets.alerts(organisation, "", 10)
    assert [(alert.percent, alert.spent) for alert in found] == [(100, NANO), (80, 8 * TENTH)]
    assert sum("budget_alert" in record.getMessage() for record in caplog.records) == 2
    await world.advance(86_400)
    process.finish(await process.begin(of(organisation), NANO), NANO)
    await world.settle()
    assert len(await world.budgets.alerts(organisation, "", 10)) == 4


async def test_an_answer_given_again_uses_no_tokens(world: World) -> None:
    organisation = await world.organisation()
    before = await world.limit(organisation, "tokens", "month", "1000")
    process = world.replica()
    charge = process.finish(await process.begin(of(organisation), tokens=0), 0, 500)
    charge.cached, charge.cost_source = True, "cache"
    await world.settle()
    await world.advance(1)
    (found,) = await world.budgets.limits(organisation, "", 10, world.micros)
    assert (found[0].id, found[1].spent) == (before.limit_id, 0)
    # Counted the same when a limit comes later.
    after = await world.limit(organisation, "tokens", "lifetime", "1000")
    assert after.spent == "0"


async def test_a_request_that_began_free_goes_on_within_its_budget(world: World) -> None:
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "hour", "1")
    process = world.replica()
    request = await process.begin(of(organisation), 0)
    assert not await process.budgets.extend(request.drawn, 2 * NANO, 0)
    assert await process.budgets.extend(request.drawn, NANO, 0)
    await refused(lambda: process.begin(of(organisation), TENTH))
    assert process.finish(request, NANO).slice_ids
    await world.settle()
    await world.check()
    (found,) = await world.budgets.limits(organisation, "", 10, world.micros)
    assert found[1].spent == NANO


async def test_a_name_that_no_limit_can_have_keeps_no_charge_from_being_booked(world: World) -> None:
    """Callers choose these names, and one charge that fails would keep back all that are booked with it."""
    organisation = await world.organisation()
    await world.limit(organisation, "credits", "month", "5.00")
    world.journals = [
        Charge(charge_id="att_1", organisation_id=organisation, agent_id="a\0b", amount_nano_credits=TENTH),
        Charge(charge_id="att_2", organisation_id=organisation, run_id="r\0", amount_nano_credits=TENTH),
        Charge(charge_id="att_3", organisation_id=organisation, amount_nano_credits=TENTH),
    ]
    await world.settle()
    (found,) = await world.budgets.limits(organisation, "", 10, world.micros)
    assert found[1].spent == 3 * TENTH
    await world.check()
