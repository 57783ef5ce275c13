from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.billing.domain.errors import InvalidFieldError
from services.billing.domain.grant import requested_grant, welcome_grant
from services.billing.domain.usage import (
    check_group,
    microseconds,
    moment,
    page_size,
    parse_moment,
    parse_period,
)


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)))
def test_moments_survive_storage(naive: datetime) -> None:
    at = naive.replace(tzinfo=UTC)
    assert moment(microseconds(at)) == at


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02", datetime(2026, 1, 2, tzinfo=UTC)),
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02t03:04:05.25z", datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC)),
        ("2026-01-02 03:04:05+02:00", datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.123456789Z", datetime(2026, 1, 2, 3, 4, 5, 123_456, tzinfo=UTC)),
    ],
)
def test_dates_and_rfc_3339_are_understood(text: str, expected: datetime) -> None:
    assert parse_moment("from", text) == microseconds(expected)


@pytest.mark.parametrize(
    "text",
    [
        "yesterday",
        "2026-13-01",
        "2026-02-30",
        "20260102",
        "2026-W01-1",
        "2026-01-02T03:04:05",
        "2026-01-02T25:00:00Z",
    ],
)
def test_other_times_are_refused_with_the_field(text: str) -> None:
    with pytest.raises(InvalidFieldError, match="RFC 3339") as caught:
        parse_period("", text)
    assert caught.value.violations[0].field == "to"


def test_a_period_must_not_run_backwards() -> None:
    with pytest.raises(InvalidFieldError, match="from: is later"):
        parse_period("2026-01-02", "2026-01-01")
    assert parse_period("2026-01-02", "2026-01-02").start is not None
    assert parse_period("", "").end is None


def test_groups_and_pages_have_limits() -> None:
    check_group("")
    with pytest.raises(InvalidFieldError, match="model, provider"):
        check_group("colour")
    assert page_size(0) == 100
    with pytest.raises(InvalidFieldError, match="1000"):
        page_size(1001)


@pytest.mark.parametrize("amount", [0, -1, float("nan"), 0.0000000001, 1000000.000000001, 1e30])
def test_amounts_that_cannot_be_granted_are_refused(amount: float) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        requested_grant("org_a", amount, "key", "", "", 10**15)
    assert caught.value.violations[0].field == "amount"


def test_a_grant_needs_a_key() -> None:
    with pytest.raises(InvalidFieldError, match="idempotency_key"):
        requested_grant("org_a", 1, "", "", "", 10**15)


def test_a_fingerprint_tells_contents_apart() -> None:
    one = requested_grant("org_a", 1.5, "key", "note", "admin", 10**15)
    same = requested_grant("org_a", 1.50, "key", "note", "other admin", 10**15)
    assert one.fingerprint == same.fingerprint
    for other in (("org_b", 1.5, "note"), ("org_a", 2, "note"), ("org_a", 1.5, "")):
        assert requested_grant(other[0], other[1], "key", other[2], "", 10**15).fingerprint != one.fingerprint


def test_the_bootstrap_organisation_gets_its_own_credits() -> None:
    assert welcome_grant("o", True, 5, 1).id == "grant:bootstrap:o"
    assert welcome_grant("o", True, 5, 1).amount == 5
    assert welcome_grant("o", False, 5, 1).id == "grant:free:o"
    assert welcome_grant("o", False, 5, 1).amount == 1
