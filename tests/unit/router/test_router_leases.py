"""Leases and holds against a billing service in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from omnihub.billing.v1 import billing_service_pb2 as billing

from services.common.rpc import RpcError
from services.router.accounting import leases as leases_module
from services.router.accounting.leases import Leases, Reservation
from tests.support.fakes import FakeBilling
from tests.support.router import bounded

ORG = "org_1"


class World:
    def __init__(self, available: int = 100_000, lease_ttl_s: int = 30, minimum: int = 10) -> None:
        self.billing = FakeBilling(available, lease_ttl_s)
        self.settled: list[str] = []
        self.leases = Leases(self.billing, "test", minimum, 1000, self._settle)

    async def _settle(self, lease_id: str) -> None:
        # Still open at billing: nothing is freed before its charges are booked.
        assert lease_id in self.billing.leases
        self.settled.append(lease_id)


async def test_a_lease_is_at_least_four_times_the_first_amount_and_serves_later_ones() -> None:
    world = World()
    first = await world.leases.reserve(ORG, 100)
    second = await world.leases.reserve(ORG, 100)
    assert list(world.billing.leases.values()) == [400]
    assert first.lease is second.lease
    assert world.billing.calls == ["acquire_lease"]


async def test_nothing_is_asked_for_what_is_free() -> None:
    world = World(available=0)
    assert (await world.leases.reserve(ORG, 0)).amount == 0
    assert world.billing.calls == []


async def test_concurrent_reservations_share_one_lease() -> None:
    world = World()
    reservations = await asyncio.gather(*(world.leases.reserve(ORG, 10) for _ in range(4)))
    assert len({reservation.lease_id for reservation in reservations}) == 1
    assert world.billing.calls == ["acquire_lease"]


async def test_a_lease_drawn_empty_by_others_is_asked_for_again() -> None:
    world = World()
    lease_once = world.leases._lease
    stolen = []

    async def lease_and_lose(organisation_id: str, wanted: int, minimum: int) -> None:
        """Others are there between the grant and whoever waits for it, once."""
        await lease_once(organisation_id, wanted, minimum)
        if not stolen:
            stolen.extend([world.leases._draw(organisation_id, 10) for _ in range(4)])

    world.leases._lease = lease_and_lose  # type: ignore[method-assign]
    reservation = await world.leases.reserve(ORG, 10)
    assert all(stolen)
    assert reservation.amount == 10
    assert world.billing.calls.count("acquire_lease") == 2


async def test_more_than_was_leased_can_never_be_reserved() -> None:
    world = World(available=1000)
    reserving = (world.leases.reserve(ORG, 90) for _ in range(30))
    outcomes = await asyncio.gather(*reserving, return_exceptions=True)
    refused = [outcome.reason for outcome in outcomes if isinstance(outcome, RpcError)]
    assert set(refused) == {"IN_FLIGHT_BUDGET_EXHAUSTED"}
    assert 1000 // 90 - 2 <= 30 - len(refused) <= 1000 // 90


async def test_organisations_do_not_share() -> None:
    world = World()
    one, two = await world.leases.reserve(ORG, 10), await world.leases.reserve("org_2", 10)
    assert one.lease_id != two.lease_id


async def test_spending_and_cancelling() -> None:
    world = World()
    one, two = await world.leases.reserve(ORG, 100), await world.leases.reserve(ORG, 100)
    world.leases.spend(one, 30)
    world.leases.cancel(two)
    assert one.lease is not None
    assert (one.lease.reserved, one.lease.spent, one.lease.free) == (0, 30, 370)


async def test_a_lease_near_its_expiry_is_not_spent_from() -> None:
    world = World(lease_ttl_s=5)
    with pytest.raises(RpcError, match="lease_ttl_s"):
        await world.leases.reserve(ORG, 10)


async def test_when_less_is_available_one_hold_for_the_request() -> None:
    world = World(available=300)
    reservation = await world.leases.reserve(ORG, 100)
    assert world.billing.holds == {reservation.hold_id: 100}
    world.leases.cancel(reservation)
    await world.leases.close()
    assert world.billing.released == [reservation.hold_id]
    assert world.billing.available == 300


async def test_what_an_idle_lease_keeps_is_returned_first() -> None:
    world = World(available=1000)
    world.leases.spend(await world.leases.reserve(ORG, 100), 50)
    reservation = await world.leases.reserve(ORG, 900)
    assert reservation.hold_id
    assert len(world.settled) == len(world.billing.closed) == 1


async def test_a_lease_drawn_from_while_another_is_closed_stays_open() -> None:
    world = World(available=1000)
    for reservation in [await world.leases.reserve(ORG, 100) for _ in range(5)]:
        world.leases.cancel(reservation)
    replaced, current = world.billing.leases
    drawn: list[Reservation] = []

    async def draw() -> None:
        if not drawn:
            drawn.append(await world.leases.reserve(ORG, 100))

    world.billing.before["close_lease"] = draw
    with pytest.raises(RpcError, match="IN_FLIGHT_BUDGET_EXHAUSTED"):
        await world.leases.reserve(ORG, 1000)
    assert [reservation.lease_id for reservation in drawn] == [current]
    assert list(world.billing.closed) == [replaced]
    assert world.billing.leases == {current: 400}


async def test_refusals_that_are_not_about_money_are_passed_on() -> None:
    world = World()
    world.billing.refusals["acquire_lease"] = [RpcError("UNAVAILABLE", "starting")]
    with pytest.raises(RpcError, match="UNAVAILABLE"):
        await world.leases.reserve(ORG, 10)
    assert "create_hold" not in world.billing.calls


async def test_no_credits() -> None:
    with pytest.raises(RpcError, match="INSUFFICIENT_CREDITS"):
        await World(available=0).leases.reserve(ORG, 10)


async def test_extending() -> None:
    world = World()
    reservation = await world.leases.reserve(ORG, 100)
    assert await world.leases.extend(reservation, 100)
    first = reservation.lease
    assert first is not None
    assert first.reserved == 200
    # More than the lease has: the whole reservation moves to a larger one.
    assert await world.leases.extend(reservation, 300)
    assert reservation.lease is not first
    assert (first.reserved, reservation.amount) == (0, 500)
    assert reservation.lease is not None
    assert reservation.lease.reserved == 500


async def test_extending_a_hold() -> None:
    world = World(available=300)
    reservation = await world.leases.reserve(ORG, 100)
    assert await world.leases.extend(reservation, 100)
    assert world.billing.holds == {reservation.hold_id: 200}
    assert not await world.leases.extend(reservation, 200)
    assert reservation.amount == 200


async def test_extending_beyond_what_is_available() -> None:
    world = World(available=400)
    reservation = await world.leases.reserve(ORG, 100)
    assert not await world.leases.extend(reservation, 5000)
    assert reservation.amount == 100
    world.leases.cancel(reservation)
    assert reservation.lease is not None
    assert reservation.lease.reserved == 0


async def test_extending_a_lost_lease_moves_away_from_it() -> None:
    world = World()
    reservation = await world.leases.reserve(ORG, 100)
    lost = reservation.lease_id
    world.billing.leases.clear()
    await world.leases.maintain()
    assert not world.leases.is_open(lost)
    assert await world.leases.extend(reservation, 100)
    assert reservation.lease_id != lost
    assert reservation.amount == 200


async def test_a_lost_lease_is_not_drawn_from() -> None:
    world = World()
    lost = await world.leases.reserve(ORG, 10)
    world.billing.leases.clear()
    await world.leases.maintain()
    assert (await world.leases.reserve(ORG, 10)).lease_id != lost.lease_id


async def test_idle_and_replaced_leases_go_back_after_they_are_settled() -> None:
    world = World()
    first = await world.leases.reserve(ORG, 100)
    second = await world.leases.reserve(ORG, 500)
    assert first.lease is not second.lease
    await world.leases.maintain()
    assert world.settled == []
    world.leases.spend(first, 100)
    await world.leases.maintain()
    assert world.settled == list(world.billing.closed) == [first.lease_id]
    world.leases.spend(second, 1)
    assert second.lease is not None
    second.lease.used_at -= 60
    await world.leases.maintain()
    assert world.settled == list(world.billing.closed) == [first.lease_id, second.lease_id]


async def test_a_lease_that_cannot_be_closed_does_not_stop_the_renewal_of_others() -> None:
    world = World()
    idle, busy = await world.leases.reserve(ORG, 10), await world.leases.reserve("org_2", 10)
    world.leases.cancel(idle)
    assert idle.lease is not None
    assert busy.lease is not None
    idle.lease.used_at -= 60
    busy.lease.expires_at = 0
    world.billing.refusals["close_lease"] = [RpcError("UNAVAILABLE", "starting")]
    with pytest.raises(RpcError):
        await world.leases.maintain()
    assert busy.lease.expires_at > 0
    await world.leases.maintain()
    assert list(world.billing.closed) == [idle.lease_id]


@pytest.mark.parametrize("how", ["maintain", "return idle", "close"])
async def test_a_lease_that_billing_fails_at_keeps_no_other_from_going_back(how: str) -> None:
    world = World(available=1200)
    reservations = [await world.leases.reserve(ORG, 100) for _ in range(5)]
    for reservation in reservations:
        world.leases.cancel(reservation)
        assert reservation.lease is not None
        reservation.lease.used_at -= 60
    first, second = world.billing.leases
    world.billing.refusals["close_lease"] = [RpcError("INTERNAL", "a charge that billing fails at")]
    if how == "return idle":
        assert (await world.leases.reserve(ORG, 800)).hold_id
    else:
        with pytest.raises(RpcError, match="INTERNAL"):
            await getattr(world.leases, how)()
    assert list(world.billing.closed) == [second]
    await world.leases.maintain()
    assert list(world.billing.closed) == [second, first]


async def test_at_the_end_everything_unused_is_returned() -> None:
    world = World()
    world.leases.spend(await world.leases.reserve(ORG, 10), 5)
    busy = await world.leases.reserve("org_2", 10)
    await world.leases.close()
    assert list(world.billing.leases) == [busy.lease_id]


@pytest.mark.parametrize("available", [100_000, 30])
async def test_a_caller_who_leaves_while_credits_are_reserved_strands_nothing(available: int) -> None:
    world = World(available=available)
    entered, gate = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        entered.set()
        await gate.wait()

    world.billing.before = {"acquire_lease" if available > 40 else "create_hold": wait}
    task = asyncio.create_task(world.leases.reserve(ORG, 10))
    async with bounded():
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
        await world.leases.close()
    assert world.billing.leases == world.billing.holds == {}
    assert world.billing.available == available


async def test_a_hold_lives_as_long_as_its_request() -> None:
    world = World(available=300)
    asked: list[tuple[str, int]] = []

    async def extend_hold(request: Any, call: Any) -> Any:
        asked.append((request.hold_id, request.ttl_s))
        return billing.ExtendHoldResponse()

    world.billing.extend_hold = extend_hold  # type: ignore[method-assign]
    reservation = await world.leases.reserve(ORG, 100, 720)
    assert reservation.hold_ttl_s == 720
    await world.leases.maintain()
    assert not asked
    reservation.hold_expires_at -= 400
    await world.leases.maintain()
    assert asked == [(reservation.hold_id, 720)]
    reservation.hold_expires_at -= 400
    world.leases.spend(reservation, 50)
    await world.leases.maintain()
    assert len(asked) == 1


async def test_what_outlives_the_process_is_held_also_after_a_free_candidate() -> None:
    world = World()
    reservation = await world.leases.hold_for(ORG, 0, 86_400)
    assert await world.leases.extend(reservation, 50)
    # Neither part of a lease, which would stay open for it, nor renewed here for ever.
    assert (reservation.lease, bool(reservation.hold_id), world.leases._holds) == (None, True, {})
    assert world.billing.leases == {}


async def test_organisations_that_asked_once_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "ORGANISATIONS", 3)
    poor, rich = World(available=0), World()
    names = [f"org_{number}" for number in range(10)]
    for name in names:
        with pytest.raises(RpcError):
            await poor.leases.reserve(name, 10)
        rich.leases.spend(await rich.leases.reserve(name, 10), 10)
    await rich.leases.close()
    assert list(rich.leases._available) == names[-3:]
    assert (
        len(poor.leases._refusals) == len(poor.leases._lease_refusals) == len(rich.leases._returned_at) == 10
    )
    # Later.
    monkeypatch.setattr(leases_module, "RETURNS_KEPT_S", -1.0)
    for refusals in (poor.leases._refusals, poor.leases._lease_refusals):
        refusals.update({name: replace(each, until=0.0) for name, each in refusals.items()})
    for world in (poor, rich):
        await world.leases.maintain()
    kept = (poor.leases._refusals, poor.leases._lease_refusals, rich.leases._returned_at)
    assert kept == ({}, {}, {})
