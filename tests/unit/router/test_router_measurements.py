"""Sketches of durations, tallies of minutes, and the order in which candidates come."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omnihub.common.v1.chat_pb2 import ChatInput
from omnihub.router.v1.router_service_pb2 import CallOptions

from services.router.domain.breaker import Breaker, Limits
from services.router.domain.catalogue import Catalogue, Model, Target
from services.router.domain.policy import Candidate, Plan, Question
from services.router.domain.shortlist import options_of
from services.router.domain.sketch import Sketch, Tally
from services.router.domain.strategy import Strategy, arranged, strategy_of
from services.router.health import measurements as module
from services.router.health.latency import KEPT_S, TARGETS, Latencies
from services.router.health.measurements import Measurements
from services.router.settings import RouteSettings

TARGET = Target("a", "x")


@given(st.lists(st.floats(1, 1e7), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_right_to_a_tenth(values: list[float], share: float) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    assert exact * 0.99 - 1 <= sketch.percentile(share) <= exact * 1.11 + 1


@given(st.lists(st.floats(0, 1e9), max_size=50), st.lists(st.floats(0, 1e9), max_size=50))
def test_sketches_add_up_and_are_stored_whole(left: list[float], right: list[float]) -> None:
    one, other, both = Sketch(), Sketch(), Sketch()
    for value in left:
        one.add(value)
        both.add(value)
    for value in right:
        other.add(value)
        both.add(value)
    one.include(Sketch.from_bytes(other.to_bytes()))
    assert one == both
    assert len(both.counts) <= 176


def test_minutes_pass() -> None:
    now = [60_000.0]
    measured = Measurements(lambda: now[0])
    measured.succeeded(TARGET)
    measured.first_token(TARGET, 50)
    measured.latency(TARGET, 200)
    measured.failed(TARGET)
    assert measured.window(TARGET, 15).success_rate == 0.5
    changed = list(measured.take_changed())
    assert [(target, minute) for target, minute, _ in changed] == [(TARGET, 1000)]
    assert not list(measured.take_changed())
    now[0] += 14 * 60
    measured.cancelled(TARGET)
    assert measured.window(TARGET, 15).attempts == 3
    assert measured.window(TARGET, 5).attempts == 1
    now[0] += 60
    measured.succeeded(TARGET)
    known = measured.window(TARGET, 15)
    assert (known.attempts, known.successes, known.cancelled) == (2, 1, 1)


def test_a_failure_after_the_first_token_takes_the_success_back() -> None:
    measured = Measurements()
    measured.succeeded(TARGET)
    measured.failed(TARGET, begun=True)
    known = measured.window(TARGET, 15)
    assert (known.attempts, known.successes, known.failures) == (1, 0, 1)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TARGETS", 5)
    measured = Measurements()
    for number in range(20):
        measured.succeeded(Target("a", str(number)))
    assert len(measured.targets()) == 5


def test_tallies_without_judgement() -> None:
    assert Tally().success_rate == 0
    assert Sketch().percentile(0.5) == 0


def test_caution_makes_a_closed_circuit_probe() -> None:
    breaker = Breaker(Limits(failures=5, window_s=30, open_s=10))
    breaker.caution(100)
    assert breaker.state(100) == "half_open"
    assert breaker.admits(100)
    assert not breaker.admits(101), "one probe at a time"
    breaker.succeeded(102, 99)
    assert not breaker.closed, "an answer from before proves nothing"
    breaker.succeeded(102, 100)
    assert breaker.state(102) == "closed"
    breaker.trip(110, 60)
    breaker.caution(111)
    assert breaker.state(111) == "open"
    assert breaker.state(171) == "half_open"


def candidates(*prices: int, **settings: Any) -> Plan:
    names = [f"p{number}/m" for number in range(len(prices))]
    model = Model.of("m", RouteSettings(route=names, **settings))
    options = options_of([model], Catalogue({}))
    chain = tuple(Candidate(option, price) for option, price in zip(options, prices, strict=True))
    return Plan("m", "chat", chain, (), Question(requested="m", scored=False))


def order(plan: Plan) -> list[str]:
    return [candidate.target.provider for candidate in plan.chain]


def test_the_cheapest_comes_after_primary_and_backup() -> None:
    plan = candidates(9, 8, 7, 1, 3)
    assert order(arranged(plan, Strategy("failover_cheapest"), "s")) == ["p0", "p1", "p3", "p4", "p2"]
    assert arranged(plan, Strategy("failover"), "s") is plan


def test_a_split_follows_its_weights_and_its_sessions() -> None:
    plan = candidates(1, 1, 1, endpoints={"p0/m": {"weight": 3}, "p1/m": {"weight": 1}})
    split = Strategy("split")
    first = Counter(order(arranged(plan, split, f"s{number}"))[0] for number in range(2000))
    assert set(first) == {"p0", "p1"}
    assert 0.7 < first["p0"] / 2000 < 0.8
    assert len({tuple(order(arranged(plan, split, "the same"))) for _ in range(10)}) == 1
    assert all(len(arranged(plan, split, f"s{number}").chain) == 3 for number in range(10))


def test_a_split_without_weights_is_even() -> None:
    plan = candidates(1, 1)
    first = Counter(order(arranged(plan, Strategy("split"), f"s{number}"))[0] for number in range(1000))
    assert 400 < first["p0"] < 600


def test_where_a_strategy_comes_from() -> None:
    route = RouteSettings(route=["a/x"], strategy="race", race_width=3, hedge_after_ms=7)
    assert strategy_of(CallOptions(), ChatInput(), route) == Strategy("race", width=3)
    hedge = strategy_of(CallOptions(strategy="hedge"), ChatInput(), route)
    assert (hedge.name, hedge.hedge_after_ms, hedge.alone) == ("hedge", 7, False)
    parallel = strategy_of(CallOptions(race_width=4), ChatInput(parallel=True), RouteSettings(route=["a/x"]))
    assert parallel == Strategy("race", width=4)


def test_a_latency_is_smoothed_and_forgotten_in_time() -> None:
    now = 100.0
    latencies = Latencies(lambda: now)
    slow, other = Target("a", "slow"), Target("b", "x")
    latencies.observe(slow, 1000)
    latencies.observe(slow, 2000)
    assert latencies.of_all([slow, other]) == [1100, 0]
    now += KEPT_S - 1
    assert latencies.of(slow) == 1100
    now += 1
    # Otherwise nobody would ever ask it again and find out that it is fast now.
    assert latencies.of(slow) == 0
    latencies.observe(slow, 50)
    assert latencies.of(slow) == 50


def test_latencies_are_bounded() -> None:
    latencies = Latencies()
    targets = [Target("a", str(number)) for number in range(TARGETS + 1)]
    for target in targets:
        latencies.observe(target, 7)
    assert latencies.of_all([targets[0], targets[1], targets[-1]]) == [0, 7, 7]
