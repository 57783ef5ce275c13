from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omnihub.billing.v1.price_pb2 import Margin, Price, PriceTier, ServiceTierPrice
from omnihub.common.v1.chat_pb2 import Usage

from services.credits.rating import bound, bound_at, covers_text, provider_cost_of, rate, tier_of

PRICE = Price(
    input_pico=1_000_000,
    cache_read_pico=100_000,
    cache_write_pico=1_250_000,
    cache_write_1h_pico=2_000_000,
    output_pico=5_000_000,
    request_pico=7,
    tiers=[
        PriceTier(
            above_input_tokens=1000,
            input_pico=2_000_000,
            cache_read_pico=200_000,
            cache_write_pico=2_500_000,
            cache_write_1h_pico=4_000_000,
            output_pico=7_500_000,
        )
    ],
)
tokens = st.integers(0, 4000)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    total = draw(tokens)
    read = draw(st.integers(0, total))
    write = draw(st.integers(0, total - read))
    return Usage(
        input_total=total,
        cache_read=read,
        cache_write=write,
        cache_write_1h=draw(st.integers(0, write)),
        output_total=draw(tokens),
    )


def test_each_kind_of_token_has_its_price() -> None:
    usage = Usage(input_total=100, cache_read=20, cache_write=30, cache_write_1h=10, output_total=5)
    pico = 50 * 1_000_000 + 20 * 100_000 + 20 * 1_250_000 + 10 * 2_000_000 + 5 * 5_000_000 + 7
    assert rate(usage, PRICE) == -(-pico // 1000)


def test_the_last_tier_reached_applies_to_everything() -> None:
    assert tier_of(PRICE, 1000) is PRICE
    assert rate(Usage(input_total=1001, output_total=1), PRICE) == 1001 * 2000 + 7500 + 1


@given(usages(), st.integers(0, 4000))
def test_more_output_never_costs_less(usage: Usage, more: int) -> None:
    larger = Usage()
    larger.CopyFrom(usage)
    larger.output_total += more
    assert rate(larger, PRICE) >= rate(usage, PRICE)


@given(usages(), st.integers(0, 4000))
def test_more_plain_input_never_costs_less(usage: Usage, more: int) -> None:
    larger = Usage()
    larger.CopyFrom(usage)
    larger.input_total += more
    assert rate(larger, PRICE) >= rate(usage, PRICE)


@given(usages())
def test_no_request_costs_more_than_its_bound(usage: Usage) -> None:
    assert rate(usage, PRICE) <= bound(usage.input_total, usage.output_total, PRICE)


def test_the_figure_of_the_provider_wins() -> None:
    assert rate(Usage(input_total=10, provider_cost="0.0000000011"), PRICE) == 2
    assert rate(Usage(input_total=10, provider_cost="0"), PRICE) == 0


@pytest.mark.parametrize("said", ["", "free", "NaN", "-1", "Infinity", "1e30", "0x10"])
def test_a_figure_that_cannot_be_a_cost_is_not_believed(said: str) -> None:
    usage = Usage(input_total=10, output_total=10, provider_cost=said)
    assert provider_cost_of(usage) is None
    assert rate(usage, PRICE) == rate(Usage(input_total=10, output_total=10), PRICE)


def test_a_price_of_media_alone_is_no_price_of_text() -> None:
    assert not covers_text(Price(image_pico=5))
    assert covers_text(Price(image_pico=5, output_pico=1))
    assert covers_text(Price(request_pico=1))
    # What is said to be free is free.
    assert covers_text(Price(source="free"))


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.booleans(),
    st.sampled_from(["", "flex", "unknown"]),
    st.sampled_from(
        [None, Margin(basis_points=1500), Margin(basis_points=1500, fixed=Price(request_pico=7))]
    ),
    st.sampled_from(
        [
            PRICE,
            Price(input_pico=3, output_pico=5, cache_write_pico=4, reasoning_pico=9, request_pico=11),
            Price(input_pico=3, output_pico=5, input_audio_pico=40, output_image_pico=50),
            Price(input_pico=3, tiers=[PriceTier(above_input_tokens=1000, input_pico=6, output_pico=7)]),
            Price(
                input_pico=3,
                service_tiers=[
                    ServiceTierPrice(service_tier="flex", price=Price(input_pico=9, output_pico=1))
                ],
            ),
        ]
    ),
)
def test_a_bound_that_is_prepared_is_the_same(
    given_tokens: int, taken: int, media: bool, tier: str, margin: Margin | None, price: Price
) -> None:
    at = bound_at(price, margin, media=media, service_tier=tier)
    assert at(given_tokens, taken) == bound(
        given_tokens, taken, price, margin, media=media, service_tier=tier
    )
