from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.credits.money import LARGEST_NANO, decimal_to_nano_up, format_nano, parse_nano, pico_to_nano


@given(st.integers(-LARGEST_NANO, LARGEST_NANO))
def test_what_is_formatted_is_parsed_back(amount: int) -> None:
    text = format_nano(amount)
    assert parse_nano(text) == amount
    assert "E" not in text.upper()


@pytest.mark.parametrize(
    ("text", "nano"),
    [("0.05", 50_000_000), ("1", 10**9), ("1e-9", 1), ("-2.5", -2_500_000_000), ("0.10", 10**8)],
)
def test_decimals_become_nano_credits(text: str, nano: int) -> None:
    assert parse_nano(text) == nano


@pytest.mark.parametrize(
    "text",
    ["", "abc", "1,5", "NaN", "sNaN", "Infinity", "-inf", "0.0000000001", "1e1000", "1e999999999", "9" * 12],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"amount|nano-credit"):
        parse_nano(text)


def test_digits_are_never_dropped_silently() -> None:
    with pytest.raises(ValueError, match=r"finer|digits"):
        parse_nano("0.1234567890000000000000000000000000000000000000001")
    with pytest.raises(ValueError, match="finer"):
        parse_nano("1234567890.12345678901234567890")


@given(st.integers(0, 10**18))
def test_rounding_goes_up_by_less_than_one(pico: int) -> None:
    nano = pico_to_nano(pico)
    assert 0 <= nano * 1000 - pico < 1000


@given(st.decimals(0, 10**6, allow_nan=False, places=15))
def test_a_decimal_cost_is_rounded_up_by_less_than_one(cost: Decimal) -> None:
    assert 0 <= decimal_to_nano_up(cost) - cost * 10**9 < 1
