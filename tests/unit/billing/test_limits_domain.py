"""The pure parts of limits: windows, terms, slices, refusals."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omnihub.billing.v1.budget_pb2 import LimitTerms
from omnihub.billing.v1.usage_pb2 import Charge

from services.billing.domain.errors import InvalidFieldError
from services.billing.domain.limit import (
    Limit,
    crossed,
    grown_total,
    read_limit,
    refusal,
    subjects_of,
    units_of,
    who_of,
)
from services.credits.money import NANO
from services.credits.windows import window_end, window_start

ORG = "org_1"


def micros(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        ("minute", (2028, 2, 29, 23, 59), (2028, 3, 1)),
        ("hour", (2028, 2, 29, 23), (2028, 3, 1)),
        ("day", (2028, 2, 29), (2028, 3, 1)),
        ("week", (2028, 2, 28), (2028, 3, 6)),
        ("month", (2028, 2, 1), (2028, 3, 1)),
    ],
)
def test_windows_of_a_leap_day(window: str, start: tuple[int, ...], end: tuple[int, ...]) -> None:
    at = micros(2028, 2, 29, 23, 59, 59) + 999_999
    starts, ends = (micros(*moment) for moment in (start, end))
    assert (window_start(window, at), window_end(window, at)) == (starts, ends)


def test_a_year_ends() -> None:
    assert window_end("month", micros(2027, 12, 31)) == micros(2028, 1, 1)


@pytest.mark.parametrize("window", ["total", "lifetime", ""])
def test_windows_without_an_end(window: str) -> None:
    assert (window_start(window, micros(2028, 1, 1)), window_end(window, micros(2028, 1, 1))) == (0, None)


@given(
    window=st.sampled_from(["minute", "hour", "day", "week", "month"]),
    at=st.integers(0, micros(2200, 1, 1)),
)
def test_windows_follow_each_other_without_a_gap(window: str, at: int) -> None:
    start, end = window_start(window, at), window_end(window, at)
    assert end is not None
    assert start <= at < end
    assert window_start(window, end) == end
    assert window_start(window, end - 1) == window_start(window, start) == start


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"scope": "planet"}, "terms.scope"),
        ({"measure": ""}, "terms.measure"),
        ({"measure": "love"}, "terms.measure"),
        ({"window": ""}, "terms.window"),
        ({"window": "year"}, "terms.window"),
        ({"measure": "concurrency"}, "terms.window"),
        ({"measure": "concurrency", "window": "", "enforcement": "soft"}, "terms.enforcement"),
        ({"measure": "concurrency", "window": "", "alert_at_percent": [50]}, "terms.alert_at_percent"),
        ({"enforcement": "strict"}, "terms.enforcement"),
        ({"alert_at_percent": [0]}, "terms.alert_at_percent"),
        ({"scope": "key"}, "terms.scope_id"),
        ({"scope": "key", "scope_id": "x\0"}, "terms.scope_id"),
        ({"scope_id": "org_2"}, "terms.scope_id"),
        ({"amount": ""}, "terms.amount"),
        ({"amount": "NaN"}, "terms.amount"),
        ({"amount": "-1"}, "terms.amount"),
        ({"amount": "0.0000000001"}, "terms.amount"),
        ({"amount": "1000000001"}, "terms.amount"),
        ({"amount": "1e999999"}, "terms.amount"),
        ({"measure": "tokens", "amount": "1.5"}, "terms.amount"),
    ],
)
def test_wrong_terms_name_the_field(terms: dict[str, Any], field: str) -> None:
    written = LimitTerms(**{"measure": "credits", "window": "day", "amount": "1", **terms})
    with pytest.raises(InvalidFieldError) as caught:
        read_limit(written, "lim_1", ORG, "organisation", 0)
    assert [violation.field for violation in caught.value.violations] == [field]


def a_limit(amount: int = 1000, measure: str = "tokens", window: str = "day", **more: Any) -> Limit:
    return Limit(
        id="lim_1", organisation_id=ORG, scope="key", scope_id="key_1", measure=measure, window=window,
        amount=amount, **more,
    )  # fmt: skip


@given(
    available=st.integers(0, 10**6),
    granted=st.integers(0, 10**4),
    need=st.integers(1, 10**4),
    kept=st.integers(0, 10**4),
)
def test_slices_stay_within_what_is_available(available: int, granted: int, need: int, kept: int) -> None:
    total = grown_total(a_limit(), available, granted, kept + need, need)
    if total is None:
        assert kept + need - granted > available
        return
    assert total >= max(granted, kept + need)
    assert total - granted <= available
    lacks = max(0, kept + need - granted)
    assert (total - granted - lacks) % need == 0


def test_near_the_limit_a_slice_is_one_request() -> None:
    assert grown_total(a_limit(), 19, 0, 1, 1) == 1
    assert grown_total(a_limit(), 41, 0, 1, 1) == 3


def test_slices_of_credits_are_small() -> None:
    assert grown_total(a_limit(measure="credits"), 10**18, 0, NANO, NANO) == 6 * NANO
    assert grown_total(a_limit(measure="credits"), 10**18, 0, 9 * NANO, 9 * NANO) == 9 * NANO


def test_thresholds() -> None:
    limit = a_limit(100, thresholds=(50, 80, 100))
    assert list(crossed(limit, 0, 49)) == []
    assert list(crossed(limit, 49, 80)) == [50, 80]
    assert list(crossed(limit, 80, 200)) == [100]


def test_a_charge_is_everybodys_it_names() -> None:
    charge = Charge(organisation_id=ORG, key_id="key_1", run_id="run_1")
    assert subjects_of(who_of(charge)) == {("organisation", ORG), ("key", "key_1"), ("run", "run_1")}
    assert units_of(5, 7) == {"credits": 5, "requests": 1, "tokens": 7}


NOON = micros(2028, 2, 29, 12, 0, 15)


@pytest.mark.parametrize(
    ("limit", "need", "spent", "reason", "retry", "resets"),
    [
        (a_limit(), 1001, 0, "ESTIMATE_EXCEEDS_BUDGET", None, None),
        (a_limit(), 500, 600, "BUDGET_LIMIT", None, "2028-03-01T00:00:00Z"),
        (a_limit(window="lifetime"), 500, 600, "BUDGET_LIMIT", None, ""),
        (a_limit(), 500, 500, "IN_FLIGHT_BUDGET_EXHAUSTED", 1, None),
        (a_limit(window="minute"), 500, 600, "RATE_LIMITED", 45, None),
        (a_limit(window="minute"), 500, 500, "RATE_LIMITED", 1, None),
        (a_limit(5, "concurrency", ""), 1, 0, "RATE_LIMITED", 1, None),
    ],
)
def test_refusals(
    limit: Limit, need: int, spent: int, reason: str, retry: float | None, resets: str | None
) -> None:
    error = refusal(limit, need, need, spent, NOON)
    assert (error.reason, error.retry_after_s, error.metadata.get("resets_at")) == (reason, retry, resets)
    assert error.metadata["scope_id"] == "key_1"
