"""The circuit breaker: what it lets through, over every order of outcomes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.rpc import RpcError
from services.router.domain.breaker import RETURN_S, Breaker, Limits
from services.router.domain.catalogue import Target
from services.router.health.health import TARGETS, Health
from services.router.settings import BreakerSettings

LIMITS = Limits(failures=3, window_s=10, open_s=5)
TARGET = Target("a", "x")


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(LIMITS)
    for _ in range(LIMITS.failures):
        breaker.failed(at, at)
    return breaker


def test_failures_open_it_and_a_probe_closes_it() -> None:
    breaker = Breaker(LIMITS)
    assert [breaker.failed(now, now) for now in (1, 2, 3)] == [False, False, True]
    assert not breaker.admits(7.9)
    assert breaker.pause_s(7) == 1
    assert breaker.admits(8)
    assert not breaker.admits(8.1), "one probe at a time"
    breaker.succeeded(8.5, 8)
    assert breaker.closed
    assert breaker.admits(8.6)


def test_a_probe_that_fails_opens_it_again_for_as_long() -> None:
    breaker = opened()
    assert breaker.admits(5)
    breaker.failed(6, 5)
    assert not breaker.admits(10.9)
    assert breaker.admits(11)


def test_old_failures_do_not_count() -> None:
    breaker = Breaker(LIMITS)
    assert not any(breaker.failed(now, now) for now in (0, 6, 12, 18, 24))
    assert breaker.closed


def test_failures_that_are_the_exception_do_not_open_it() -> None:
    breaker = Breaker(LIMITS)
    for _ in range(10):
        breaker.succeeded(1, 1)
    assert not any(breaker.failed(2, 2) for _ in range(5))
    assert breaker.closed


def test_what_began_before_the_trouble_proves_nothing() -> None:
    breaker = opened(at=10)
    breaker.succeeded(11, began=1)
    assert not breaker.closed
    breaker.failed(14, began=1)
    assert breaker.admits(15), "a late failure does not lengthen the pause"
    breaker.succeeded(15.5, began=15)
    assert breaker.closed


def test_a_probe_whose_caller_left_gives_its_turn_back() -> None:
    breaker = opened()
    assert breaker.admits(5)
    breaker.released()
    assert breaker.admits(5)


def test_a_probe_that_never_tells_holds_nobody_up_for_long() -> None:
    breaker = opened()
    assert breaker.admits(5)
    assert not breaker.admits(9.9)
    assert breaker.admits(10)


# What happens, and how long before the next thing does.
STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "good", "bad", "leave", "trip"]), st.floats(0, 8)), max_size=60
)


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_a_recovered_provider_is_asked_again_in_time(steps: list[tuple[str, float]]) -> None:
    breaker, now, asked = Breaker(LIMITS), 0.0, [0.0]
    for what, pause in steps:
        if what == "ask" and breaker.admits(now):
            asked.append(now)
        elif what == "good":
            breaker.succeeded(now, asked[-1])
        elif what == "bad":
            breaker.failed(now, asked[-1])
        elif what == "leave":
            breaker.released()
        elif what == "trip":
            breaker.trip(now, 5)
        now += pause
    assert breaker.closed or breaker.pause_s(now) <= LIMITS.open_s + 1e-6
    if not breaker.closed:
        # One turn, and nobody else has one meanwhile.
        later = now + LIMITS.open_s
        assert breaker.admits(later)
        assert not breaker.admits(later)
        breaker.succeeded(later + 1, later)
    assert breaker.closed


def test_a_probe_that_hangs_as_its_provider_recovers_is_not_waited_for() -> None:
    breaker = Breaker(Limits(failures=3, window_s=30, open_s=25))
    for _ in range(3):
        breaker.failed(0, 0)
    assert breaker.admits(25)
    # From 25.1 on the provider answers again; the probe is told so by its limit alone.
    assert not breaker.failed(40, began=25)
    assert not breaker.admits(49.9)
    assert breaker.admits(50), "40 and 25 s more would be too late"


def test_no_pause_can_be_set_that_is_longer() -> None:
    assert BreakerSettings(open_s=RETURN_S).open_s == RETURN_S < 30
    with pytest.raises(ValueError, match="open_s"):
        BreakerSettings(open_s=RETURN_S + 0.1)


def test_failures_that_took_long_tell_of_long_ago() -> None:
    breaker = Breaker(Limits(failures=3, window_s=30, open_s=25))
    assert [breaker.failed(60, 0) for _ in range(3)] == [False, False, True]
    assert breaker.admits(60)
    assert not breaker.admits(60), "one probe at a time"


@given(open_s=st.floats(1, 25), hang_s=st.floats(0, 60), recovery=st.floats(0, 120))
@settings(max_examples=200, deadline=None)
def test_a_provider_that_recovers_is_asked_again_within_30_s(
    open_s: float, hang_s: float, recovery: float
) -> None:
    """Requests come all the time, and each that meets the silent provider fails only after `hang_s`."""
    clock = Clock()
    health = Health(BreakerSettings(failures=2, open_s=open_s), clock)
    hanging: list[float] = []
    recovered_at = clock() + recovery
    while clock() < recovered_at or health.pause(TARGET):
        while hanging and hanging[0] + hang_s <= clock():
            health.failed(TARGET, failure("PROVIDER_TIMEOUT"), hanging.pop(0))
        if clock() < recovered_at and not health.objection(TARGET):
            hanging.append(clock())
        clock.now += 0.5
        assert clock() <= recovered_at + 30


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_it_never_opens_without_failures(steps: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(LIMITS), 0.0
    for what, pause in steps:
        if what == "good":
            breaker.succeeded(now, now)
        elif what == "leave":
            breaker.released()
        assert breaker.admits(now)
        now += pause


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def failure(reason: str, **metadata: str) -> RpcError:
    return RpcError(reason, "provoked", metadata=metadata)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(BreakerSettings(failures=2, open_s=5, credential_pause_s=60), clock)


@pytest.mark.parametrize("reason", ["PROVIDER_FAILED", "PROVIDER_TIMEOUT", "STREAM_TRUNCATED", "UNAVAILABLE"])
def test_a_provider_that_is_down_is_left_alone(health: Health, clock: Clock, reason: str) -> None:
    for _ in range(2):
        assert not health.objection(TARGET)
        health.failed(TARGET, failure(reason), clock())
    assert "next try in 5 s" in health.objection(TARGET)
    assert not health.objection(Target("a", "y")), "its other models are not concerned"
    clock.now += 5
    assert not health.objection(TARGET)
    assert health.objection(TARGET), "one probe"
    health.succeeded(TARGET, clock())
    assert not health.objection(TARGET)


@pytest.mark.parametrize("reason", ["PROVIDER_REJECTED", "CONTENT_FILTERED", "CONTEXT_LENGTH_EXCEEDED"])
def test_a_refusal_is_a_sign_of_life(health: Health, clock: Clock, reason: str) -> None:
    for _ in range(9):
        health.failed(TARGET, failure(reason), clock())
    assert not health.objection(TARGET)


@pytest.mark.parametrize(
    ("reason", "status", "whole"),
    [
        ("PROVIDER_BILLING", "429", True),
        ("PROVIDER_CREDENTIAL_REFUSED", "401", True),
        ("PROVIDER_CREDENTIAL_REFUSED", "403", False),
    ],
)
def test_a_refused_credential_is_marked_at_once(
    health: Health, clock: Clock, reason: str, status: str, whole: bool
) -> None:
    health.failed(TARGET, failure(reason, http_status=status), clock())
    clock.now += 59
    assert health.objection(TARGET)
    assert bool(health.objection(Target("a", "y"))) == whole
    assert not health.objection(Target("b", "x"))
    clock.now += 1
    assert not health.objection(TARGET)
    assert health.objection(TARGET), "one probe"
    health.succeeded(TARGET, clock())
    assert not health.objection(TARGET)
    assert not health.objection(Target("a", "y"))


def test_invented_models_do_not_fill_the_memory(health: Health, clock: Clock) -> None:
    # Refused for one model: its circuit opens at once, and the reason is kept.
    refused = failure("PROVIDER_CREDENTIAL_REFUSED", http_status="403")
    for number in range(TARGETS + 10):
        health.failed(Target("a", f"m{number}"), refused, clock())
    assert len(health._targets) == len(health._reasons) == TARGETS
    assert health.state(Target("a", "m9"))[0] == "closed"
    assert health.state(Target("a", "m10"))[2] == "PROVIDER_CREDENTIAL_REFUSED"
