"""Any order of what several processes do while they die, expire and time goes on: no limit is ever passed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.billing.domain.errors import BillingError
from services.billing.domain.grant import Grant
from services.billing.store.budgets import BudgetStore
from services.billing.store.checks import check_ledger
from services.billing.store.held_limits import Drawing
from services.common.ids import new_id
from services.common.rpc import Identity, RpcError
from services.credits.money import NANO
from services.credits.windows import window_end, window_start
from tests.integration.budgets.test_limits import WithoutGuard
from tests.support.billing import charge
from tests.support.budgets import Replica, World, open_world

LIMITS = {
    ("credits", "hour"): 100,
    ("requests", "minute"): 4,
    ("tokens", "month"): 300,
    ("credits", "total"): 150,
}
NANO_UNITS = {"credits": 0, "requests": 1, "tokens": 2}
REFUSALS = {"BUDGET_LIMIT", "IN_FLIGHT_BUDGET_EXHAUSTED", "RATE_LIMITED", "ESTIMATE_EXCEEDS_BUDGET"}
WHO = st.integers(0, 2)
# Longer than any example.
LONG = 10 * 86_400_000_000
STEPS = st.one_of(
    st.tuples(st.just("begin"), WHO, st.integers(1, 60), st.integers(0, 120)),
    st.tuples(st.just("begin"), WHO, st.integers(1, 60), st.integers(0, 120)),
    st.tuples(st.just("finish"), WHO, st.integers(0, 100), st.integers(0, 100)),
    st.tuples(st.just("extend"), WHO, st.integers(1, 40), st.integers(0, 40)),
    st.tuples(st.just("fail"), WHO, st.just(0), st.just(0)),
    st.tuples(st.just("hold"), WHO, st.integers(1, 60), st.integers(0, 120)),
    st.tuples(st.just("capture"), WHO, st.integers(0, 100), st.integers(0, 100)),
    st.tuples(st.just("release"), WHO, st.just(0), st.just(0)),
    st.tuples(st.just("settle"), WHO, st.just(0), st.just(0)),
    st.tuples(st.just("crash"), WHO, st.just(0), st.just(0)),
    st.tuples(st.just("advance"), WHO, st.integers(1, 50), st.sampled_from([1, 1, 1, 40])),
)


@dataclass(frozen=True, slots=True)
class Held:
    """What is set aside for one request, of a window that `at` decides."""

    id: str
    nano: int
    tokens: int
    at: int


class Example:
    """One organisation, three processes, and what they did."""

    def __init__(self, world: World, organisation_id: str) -> None:
        self.world = world
        self.organisation_id = organisation_id
        self.identity = Identity(organisation_id=organisation_id, key_id="key_1")
        self.limits: dict[tuple[str, str], Any] = {}
        self.holds: list[Held] = []

    async def prepare(self) -> None:
        grant = Grant(f"more:{self.organisation_id}", self.organisation_id, NANO)
        await self.world.store.grant(grant, self.world.micros)
        for (measure, window), amount in LIMITS.items():
            text = f"0.{amount:09d}" if measure == "credits" else str(amount)
            limit = await self.world.limit(self.organisation_id, measure, window, text)
            self.limits[measure, window] = limit
        self.world.replicas = []
        for _ in range(3):
            await self.start()

    async def start(self) -> None:
        await self.world.replica().budgets.rules.reload([self.organisation_id])

    async def take(self, action: str, who: int, one: int, two: int) -> None:
        replica = self.world.replicas[who]
        running = replica.running[0] if replica.running else None
        if action == "begin":
            await self._begin(replica, one, two)
        elif action == "settle":
            await self.world.settle()
        elif action == "hold":
            await self._hold(one, two)
        elif action in ("capture", "release"):
            await self._end(one if action == "capture" else None, two)
        elif action == "crash":
            replica.crash()
            await self.start()
        elif action == "advance":
            await self.world.advance(one * two)
        elif running is None:
            return
        elif action == "finish":
            tokens = running.tokens * two // 100
            replica.finish(running, running.nano * one // 100, tokens)
        elif action == "fail":
            replica.fail(running)
        elif await replica.budgets.extend(running.drawn, one, two):
            running.nano += one
            running.tokens += two

    async def _begin(self, replica: Replica, nano: int, tokens: int) -> None:
        try:
            await replica.begin(self.identity, nano, tokens)
        except RpcError as error:
            if error.reason not in REFUSALS:
                raise

    async def _hold(self, nano: int, tokens: int) -> None:
        held = Held(new_id("hold"), nano, tokens, self.world.micros)
        drawing = Drawing((self.organisation_id, "", "", "key_1", "", ""), tokens, held.at)
        try:
            await self.world.store.create_hold(held.id, self.organisation_id, nano, LONG, held.at, drawing)
        except BillingError as error:
            if error.reason not in REFUSALS:
                raise
        else:
            self.holds.append(held)

    async def _end(self, percent: int | None, of_tokens: int) -> None:
        """End the oldest hold: with a charge of a part of it, or without."""
        if not self.holds:
            return
        held = self.holds.pop(0)
        if percent is None:
            await self.world.store.release_hold(held.id)
            return
        made = charge(new_id("att"), held.nano * percent // 100, self.organisation_id, hold_id=held.id)
        made.key_id, made.usage.output_total = "key_1", held.tokens * of_tokens // 100
        made.at.FromMicroseconds(held.at)
        await self.world.store.settle([made], self.world.micros)

    async def check(self) -> None:
        """All that was charged, booked or not, and all that is reserved stays within every window's limit."""
        await self.world.check()
        running = [request for replica in self.world.replicas for request in replica.running]
        reserved = [Held("", request.nano, request.tokens, request.drawn.at) for request in running]
        reserved += self.holds
        moments = {held.at for held in reserved}
        moments |= {charge.at.ToMicroseconds() for charge in self.world.journals}
        moments.add(self.world.micros)
        for (measure, window), amount in LIMITS.items():
            for start in {window_start(window, at) for at in moments}:
                end = window_end(window, start)
                booked = (await self.world.spent(self.organisation_id, start, end))[NANO_UNITS[measure]]
                used = booked
                for written in self.world.journals:
                    if window_start(window, written.at.ToMicroseconds()) == start:
                        used += (written.amount_nano_credits, 1, written.usage.output_total)[
                            NANO_UNITS[measure]
                        ]
                for held in reserved:
                    if window_start(window, held.at) == start:
                        used += (held.nano, 1, held.tokens)[NANO_UNITS[measure]]
                assert used <= amount, (measure, window)
                if start == window_start(window, self.world.micros):
                    await self._counted(measure, window, booked)

    async def _counted(self, measure: str, window: str, booked: int) -> None:
        limit = await self.world.budgets.limit(self.limits[measure, window].limit_id)
        assert limit is not None
        usage = await self.world.budgets.usage(limit, self.world.micros)
        assert usage.spent == booked
        assert usage.spent + usage.leased <= limit.amount


async def _run(world: World, steps: list[Any]) -> None:
    example = Example(world, await world.organisation())
    await example.prepare()
    for step in steps:
        await example.take(*step)
        await example.check()
    for held in example.holds:
        await world.store.release_hold(held.id)
    example.holds.clear()
    # Everybody dies: once all is settled and expired, nothing is set aside any more.
    for replica in list(world.replicas):
        replica.crash()
    await example.start()
    await world.advance(40)
    await example.check()
    for limit in example.limits.values():
        found = await world.budgets.limit(limit.limit_id)
        assert found is not None
        assert (await world.budgets.usage(found, world.micros)).leased == 0


def _explore(database_url: str, examples: int, store: type[BudgetStore] = BudgetStore) -> None:
    with asyncio.Runner() as runner:
        opened = open_world(database_url, store=store)
        world = runner.run(opened.__aenter__())

        @settings(
            max_examples=examples,
            deadline=None,
            # Without shrinking: what is looked for is whether something is found.
            phases=(Phase.explicit, Phase.reuse, Phase.generate)
            if store is BudgetStore
            else (Phase.generate,),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(steps=st.lists(STEPS, min_size=5, max_size=25))
        def explore(steps: list[Any]) -> None:
            runner.run(_run(world, steps))

        try:
            explore()
            assert check_ledger(world.database, world.budgets.plan_book).ok
        finally:
            runner.run(opened.__aexit__(None, None, None))


def test_no_limit_is_ever_passed(database_url: str) -> None:
    _explore(database_url, 40 if database_url.startswith("sqlite") else 15)


def test_the_search_finds_a_missing_guard(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        _explore(f"sqlite:///{tmp_path / 'test.db'}", 40, WithoutGuard)
