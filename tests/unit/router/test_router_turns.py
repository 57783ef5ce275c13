"""Requests of one organisation do not queue before a billing service that does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from omnihub.billing.v1 import budget_service_pb2 as budget

from services.common.rpc import RpcError
from services.router.accounting import leases as leases_module
from services.router.accounting.budgets import Budgets
from services.router.accounting.leases import HOLDS_AT_ONCE, Leases
from services.router.accounting.turns import Turns
from services.router.domain.limits import Rule
from tests.support.fakes import FakeBilling
from tests.support.router import bounded

ORG = "org_1"
CROWD = 20


class Silence:
    """Lets calls hang until `end` is set; then so many fail, and later ones are served."""

    def __init__(self, reason: str, failures: int = 1000) -> None:
        self.reason = reason
        self.failures = failures
        self.calls = 0
        self.end = asyncio.Event()

    async def __call__(self) -> None:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            await self.end.wait()
            raise RpcError(self.reason, "billing does not answer")


def of_leases(silence: Silence) -> Callable[[], Awaitable[Any]]:
    billing = FakeBilling()
    billing.before["acquire_lease"] = silence
    leases = Leases(billing, "test", 10, 1000, lambda _: asyncio.sleep(0))  # type: ignore[arg-type]
    return lambda: leases.reserve(ORG, 10)


def of_holds(silence: Silence) -> Callable[[], Awaitable[Any]]:
    # No lease is so small.
    billing = FakeBilling(available=39)
    billing.before["create_hold"] = silence
    leases = Leases(billing, "test", 10, 1000, lambda _: asyncio.sleep(0))  # type: ignore[arg-type]
    return lambda: leases.reserve(ORG, 10)


def of_limits(silence: Silence) -> Callable[[], Awaitable[Any]]:
    class Service:
        async def acquire_slices(self, request: budget.AcquireSlicesRequest, call: Any) -> Any:
            await silence()
            answer = budget.AcquireSlicesResponse(expires_in_s=30)
            for each in request.slices:
                answer.slices.add(slice_id=each.slice_id, granted_total=each.minimum_total)
            return answer

    rules: Any = lambda on_change: None  # noqa: E731
    budgets = Budgets(Service(), rules, "test", lambda: asyncio.sleep(0, []))  # type: ignore[arg-type]
    rule = Rule("limit_1", "organisation", "", "credits", "month", 1000)
    return lambda: budgets.reserve(ORG, [rule], 10, 0)


@pytest.mark.parametrize("reason", ["UNAVAILABLE", "DEADLINE_EXCEEDED"])
@pytest.mark.parametrize(("of", "at_once"), [(of_leases, 1), (of_holds, HOLDS_AT_ONCE), (of_limits, 1)])
async def test_who_waits_while_billing_does_not_answer_twice_is_told_so(
    of: Callable[[Silence], Callable[[], Awaitable[Any]]], at_once: int, reason: str
) -> None:
    silence = Silence(reason)
    reserve = of(silence)
    async with bounded():
        crowd = [asyncio.ensure_future(reserve()) for _ in range(CROWD)]
        for _ in range(50 * CROWD):
            # Until everybody waits.
            await asyncio.sleep(0)
        assert silence.calls == at_once
        silence.end.set()
        outcomes = await asyncio.gather(*crowd, return_exceptions=True)
        told = {getattr(outcome, "reason", None) for outcome in outcomes}
        assert told == {reason, "UNAVAILABLE"}
        assert at_once < silence.calls <= 2 * at_once
        # Who comes afterwards asks anew.
        silence.failures, asked = 0, silence.calls
        await reserve()
        assert silence.calls == asked + 1


@pytest.mark.parametrize("of", [of_leases, of_limits])
async def test_for_one_call_that_was_not_answered_nobody_else_fails(
    of: Callable[[Silence], Callable[[], Awaitable[Any]]],
) -> None:
    silence = Silence("DEADLINE_EXCEEDED", failures=1)
    reserve = of(silence)
    async with bounded():
        crowd = [asyncio.ensure_future(reserve()) for _ in range(CROWD)]
        for _ in range(50 * CROWD):
            await asyncio.sleep(0)
        silence.end.set()
        outcomes = await asyncio.gather(*crowd, return_exceptions=True)
    assert [isinstance(outcome, RpcError) for outcome in outcomes] == [True] + [False] * (CROWD - 1)


async def test_refusals_of_one_request_are_not_those_of_others() -> None:
    billing = FakeBilling()
    leases = Leases(billing, "test", 10, 1000, lambda _: asyncio.sleep(0))  # type: ignore[arg-type]
    billing.refusals["acquire_lease"] = [RpcError("INTERNAL", "a fault")]
    outcomes = await asyncio.gather(*(leases.reserve(ORG, 10) for _ in range(3)), return_exceptions=True)
    assert [isinstance(outcome, RpcError) for outcome in outcomes] == [True, False, False]


async def test_holds_near_the_limit_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "REFUSED_S", 60.0)
    billing = FakeBilling(available=39)
    everyone = asyncio.Barrier(3)

    async def meet() -> None:
        await everyone.wait()

    billing.before["create_hold"] = meet
    leases = Leases(billing, "test", 10, 1000, lambda _: asyncio.sleep(0))  # type: ignore[arg-type]
    async with bounded():
        await asyncio.gather(*(leases.reserve(ORG, 10) for _ in range(3)))
    assert len(billing.holds) == 3
    # What billing has said of leases a moment ago it is not asked again.
    assert billing.calls.count("acquire_lease") == 1


async def test_two_who_need_an_idle_lease_return_it_once() -> None:
    billing = FakeBilling(available=1000)
    settled: list[str] = []

    async def settle(lease_id: str) -> None:
        assert lease_id in billing.leases
        settled.append(lease_id)
        await asyncio.sleep(0)

    leases = Leases(billing, "test", 10, 1000, settle)
    leases.spend(await leases.reserve(ORG, 150), 150)
    async with bounded():
        both = await asyncio.gather(leases.reserve(ORG, 460), leases.reserve(ORG, 460))
    assert all(reservation.hold_id for reservation in both)
    assert len(settled) == 1


async def test_nothing_is_kept_of_who_has_had_a_turn() -> None:
    turns = Turns()

    async def silent() -> None:
        raise RpcError("UNAVAILABLE", "billing does not answer")

    async def take(key: str) -> None:
        async with turns.of(key):
            await turns.ask(key, silent())

    async with bounded():
        # Two for each: the second one waits for the first.
        crowd = [take(f"org_{number // 2}") for number in range(200)]
        outcomes = await asyncio.gather(*crowd, return_exceptions=True)
    assert [getattr(outcome, "reason", None) for outcome in outcomes] == ["UNAVAILABLE"] * 200
    assert not turns._turns
    assert not turns._silences
    with pytest.raises(RpcError):
        await turns.ask("org_alone", silent())
    assert not turns._silences
