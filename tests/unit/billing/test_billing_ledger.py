from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from omnihub.billing.v1.usage_pb2 import Charge

from services.billing.domain.accounts import wallet_of
from services.billing.domain.errors import InvalidFieldError, refusal
from services.billing.domain.ledger import (
    LARGEST_AMOUNT,
    Hold,
    Lease,
    check_amount,
    check_charges,
    check_id,
    is_late,
    settle,
    slice_of,
)
from tests.support.billing import charge

WALLET = wallet_of("org_a")


@given(st.integers(-100, 1000), st.integers(1, 1000), st.integers(1, 1000))
def test_a_slice_is_what_was_wanted_or_all_there_is_but_never_too_little(
    available: int, wanted: int, minimum: int
) -> None:
    granted = slice_of(available, wanted, minimum)
    assert granted == 0 or minimum <= granted <= available
    assert granted <= max(wanted, minimum)
    assert (granted == 0) == (available < minimum)


def test_charges_eat_a_lease_up_and_no_further() -> None:
    leases = {"l": Lease("l", WALLET, granted=100, spent=30, open=True)}
    done = settle([charge("1", 50, lease_id="l"), charge("2", 50, lease_id="l")], leases, {}, ())
    assert done.spent == {"l": 100}
    change = done.accounts[WALLET]
    assert (change.posted, change.leased, change.held) == (100, 70, 0)


def test_a_capture_releases_the_rest() -> None:
    done = settle([charge("1", 4, hold_id="h")], {}, {"h": Hold("h", WALLET, 10, True)}, ())
    change = done.accounts[WALLET]
    assert (change.posted, change.held, done.captured) == (4, 10, {"h": 4})


def test_a_capture_above_the_hold_is_booked_in_full() -> None:
    charges = [charge("1", 8, hold_id="h"), charge("2", 7, hold_id="h")]
    done = settle(charges, {}, {"h": Hold("h", WALLET, 10, True)}, ())
    change = done.accounts[WALLET]
    assert (change.posted, change.held, done.captured) == (15, 10, {"h": 10})


@pytest.mark.parametrize(
    ("fields", "late"),
    [
        ({}, False),
        ({"lease_id": "open"}, False),
        ({"lease_id": "closed"}, True),
        ({"lease_id": "unknown"}, True),
        ({"lease_id": "foreign"}, True),
        ({"hold_id": "captured"}, True),
        ({"hold_id": "unknown"}, True),
    ],
)
def test_a_charge_is_late_when_its_reservation_has_ended(fields: dict[str, str], late: bool) -> None:
    leases = {
        "open": Lease("open", WALLET, 10, 0, True),
        "closed": Lease("closed", WALLET, 10, 0, False),
        "foreign": Lease("foreign", wallet_of("org_b"), 10, 0, True),
    }
    holds = {"captured": Hold("captured", WALLET, 10, False)}
    assert is_late(charge("1", 5, **fields), leases, holds) is late
    change = settle([charge("1", 5, **fields)], leases, holds, {"1"} if late else ()).accounts[WALLET]
    assert change.posted == 5
    assert change.held == 0
    assert change.leased == (5 if fields == {"lease_id": "open"} else 0)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (Charge(organisation_id="o"), "charges[1].charge_id"),
        (Charge(charge_id="c"), "charges[1].organisation_id"),
        (Charge(charge_id="c\0", organisation_id="o"), "charges[1].charge_id"),
        (Charge(charge_id="c" * 161, organisation_id="o"), "charges[1].charge_id"),
        (charge("c", -1), "charges[1].amount_nano_credits"),
        (charge("c", LARGEST_AMOUNT + 1), "charges[1].amount_nano_credits"),
        (charge("c", 1, savings_nano_credits=-LARGEST_AMOUNT - 1), "charges[1].savings_nano_credits"),
        (charge("c", 1, at=Timestamp(seconds=10**12)), "charges[1].at"),
    ],
)
def test_a_charge_that_cannot_be_booked_is_named(bad: Charge, field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        check_charges([charge("fine", 0), bad])
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize("amount", [0, -1, LARGEST_AMOUNT + 1])
def test_absurd_amounts_are_refused(amount: int) -> None:
    with pytest.raises(InvalidFieldError, match="amount_nano_credits"):
        check_amount("amount_nano_credits", amount)


@pytest.mark.parametrize("value", ["", "x" * 161, "a\0b"])
def test_ids_that_cannot_be_stored_are_refused(value: str) -> None:
    with pytest.raises(InvalidFieldError, match="hold_id"):
        check_id("hold_id", value)


def test_a_refusal_says_whether_waiting_helps() -> None:
    never = refusal(10, posted=9, available=9, retry_after_s=1.5)
    assert (never.reason, never.retry_after_s) == ("INSUFFICIENT_CREDITS", None)
    soon = refusal(10, posted=10, available=1, retry_after_s=1.5)
    assert (soon.reason, soon.retry_after_s) == ("IN_FLIGHT_BUDGET_EXHAUSTED", 1.5)
    assert soon.metadata == {"required": "0.00000001", "available": "0.000000001"}
