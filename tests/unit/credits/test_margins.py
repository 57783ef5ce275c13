"""Rating with margins: exact, monotone, reproducible, and never above its bound."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omnihub.billing.v1.price_pb2 import Margin, Price, PriceTier, ServiceTierPrice
from omnihub.billing.v1.usage_pb2 import Charge, ChargePart, Units
from omnihub.common.v1.chat_pb2 import Usage

from services.credits.margins import MarginBook
from services.credits.rating import (
    Rated,
    UnknownVersionError,
    bound,
    priced,
    rate_again,
    sell_of,
    tokens_with_margin,
)
from services.credits.savings import savings_of

pico = st.integers(0, 10**8)
counts = st.integers(0, 5000)


@st.composite
def prices(draw: st.DrawFn, *, tiers: bool = True) -> Price:
    price = Price(
        input_pico=draw(pico),
        cache_read_pico=draw(pico),
        cache_write_pico=draw(pico),
        cache_write_1h_pico=draw(pico),
        output_pico=draw(pico),
        request_pico=draw(pico),
        image_pico=draw(pico),
        megapixel_pico=draw(pico),
        second_pico=draw(pico),
        character_pico=draw(pico),
        compute_second_pico=draw(pico),
    )
    # Cheaper than reading plainly, as caches are.
    price.cache_read_pico = min(price.cache_read_pico, price.input_pico)
    for kind in ("reasoning", "input_audio", "output_audio", "input_image", "output_image"):
        if draw(st.booleans()):
            setattr(price, f"{kind}_pico", draw(pico))
    if tiers and draw(st.booleans()):
        price.tiers.append(PriceTier(above_input_tokens=100, input_pico=draw(pico), output_pico=draw(pico)))
    if tiers and draw(st.booleans()):
        price.service_tiers.append(ServiceTierPrice(service_tier="flex", price=draw(prices(tiers=False))))
    return price


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    read, write = draw(counts), draw(counts)
    output = draw(counts)
    return Usage(
        input_total=read + write + draw(counts),
        cache_read=read,
        cache_write=write,
        cache_write_1h=draw(st.integers(0, write)),
        output_total=output,
        output_reasoning=draw(st.integers(0, output)),
        input_audio=draw(counts),
        output_audio=draw(counts),
        input_image=draw(counts),
        output_image=draw(counts),
        service_tier=draw(st.sampled_from(["", "flex", "default"])),
        provider_cost=draw(st.sampled_from(["", "", "0.00000012345678901234", "0.5"])),
    )


@st.composite
def margins(draw: st.DrawFn) -> Margin:
    if draw(st.integers(0, 9)) == 0:
        return Margin(version="mv_free", free=True)
    margin = Margin(
        version="mv", basis_points=draw(st.integers(-10_000, 50_000)), floor_pico=draw(st.integers(0, 10**10))
    )
    if draw(st.booleans()):
        margin.fixed.CopyFrom(draw(prices(tiers=False)))
    return margin


@st.composite
def some_units(draw: st.DrawFn) -> Units:
    number = st.integers(0, 10**6)
    return Units(
        images=draw(counts),
        pixels=draw(number),
        milliseconds=draw(number),
        characters=draw(number),
        compute_milliseconds=draw(number),
    )


def by_hand(usage: Usage, price: Price, margin: Margin, units: Units) -> Fraction:
    """Compute the same from the definition."""
    if margin.free:
        return Fraction(0)
    cost = Fraction(priced(usage, price, units))
    if usage.provider_cost:
        cost = Fraction(Decimal(usage.provider_cost)) * 10**12
    fixed = Fraction(priced(usage, margin.fixed, units))
    return max(cost * (10_000 + margin.basis_points) / 10_000 + fixed, Fraction(margin.floor_pico))


@given(usages(), prices(), margins(), some_units())
def test_the_price_is_exact_and_rounded_up_once(
    usage: Usage, price: Price, margin: Margin, units: Units
) -> None:
    rated = sell_of(usage, price, margin, units=units)
    assert rated.exact == by_hand(usage, price, margin, units)
    assert 0 <= rated.rounding < 1000
    assert Fraction(rated.sell * 1000) == rated.exact + rated.rounding
    assert rated.cost == sell_of(usage, price, units=units).sell
    # Rounding again, or in another process, changes nothing.
    assert sell_of(usage, price, margin, units=units) == rated


@given(st.lists(st.tuples(usages(), prices(), margins()), max_size=6))
def test_what_rounding_adds_is_accounted_for(charged: list[tuple[Usage, Price, Margin]]) -> None:
    """I9: sum of rounded - sum of exact = rounding."""
    rated = [sell_of(*each) for each in charged]
    difference = sum(each.sell * 1000 for each in rated) - sum(
        (Fraction(each.exact) for each in rated), Fraction()
    )
    assert difference == sum((Fraction(each.rounding) for each in rated), Fraction())
    assert 0 <= difference < 1000 * len(rated) or not rated


@given(usages(), prices(), margins(), counts, counts)
def test_more_is_never_cheaper_within_a_tier(
    usage: Usage, price: Price, margin: Margin, more_input: int, more_output: int
) -> None:
    price.ClearField("tiers")
    price.ClearField("service_tiers")
    larger = Usage()
    larger.CopyFrom(usage)
    larger.output_total += more_output
    assert sell_of(larger, price, margin).sell >= sell_of(usage, price, margin).sell
    usage.ClearField("input_audio")
    usage.ClearField("input_image")
    larger.CopyFrom(usage)
    larger.input_total += more_input
    assert sell_of(larger, price, margin).sell >= sell_of(usage, price, margin).sell


@given(usages(), prices(), margins(), st.integers(0, 50_000))
def test_a_higher_margin_is_never_cheaper(usage: Usage, price: Price, margin: Margin, more: int) -> None:
    higher = Margin()
    higher.CopyFrom(margin)
    higher.basis_points += more
    higher.floor_pico += more
    assert sell_of(usage, price, higher).sell >= sell_of(usage, price, margin).sell


@given(usages(), prices(), margins())
def test_no_request_costs_more_than_what_was_reserved(usage: Usage, price: Price, margin: Margin) -> None:
    usage.provider_cost = ""
    reserved = bound(
        usage.input_total, usage.output_total, price, margin, media=True, service_tier=usage.service_tier
    )
    assert sell_of(usage, price, margin).sell <= reserved


@given(usages(), prices(), margins(), margins())
def test_rating_again_gives_the_same_number(usage: Usage, price: Price, one: Margin, other: Margin) -> None:
    one.version, other.version = "mv_1", "mv_2"
    rated = sell_of(usage, price, one, 10**9)
    parts = []
    for margin in (one, other):
        each = sell_of(usage, price, margin)
        parts.append(ChargePart(usage=usage, price_version="pv", margin_version=margin.version))
        parts[-1].amount_nano_credits = each.sell
    whole = Charge(usage=usage, price_version="pv", margin_version="mv_1", limit_nano_credits=10**9)
    known = {"mv_1": one, "mv_2": other}
    assert rate_again(whole, {"pv": price}.get, known.get) == rated
    both = rate_again(Charge(parts=parts), {"pv": price}.get, known.get)
    assert both.sell == sum(part.amount_nano_credits for part in parts)


def test_an_unknown_version_cannot_be_rated_again() -> None:
    with pytest.raises(UnknownVersionError, match="pv_gone"):
        rate_again(Charge(price_version="pv_gone"), {}.get, {}.get)
    with pytest.raises(UnknownVersionError, match="mv_gone"):
        rate_again(Charge(margin_version="mv_gone"), {}.get, {}.get)


@given(usages(), prices(), prices(), margins())
def test_savings_add_up_and_change_no_amount(
    usage: Usage, price: Price, baseline: Price, margin: Margin
) -> None:
    amount = sell_of(usage, price, margin).sell
    saved = savings_of(usage, amount, (price, margin), (baseline, None))
    assert amount + saved.routing + saved.prompt_cache + saved.cache == saved.baseline
    alone = savings_of(usage, amount, (price, margin), None)
    assert (alone.routing, alone.total) == (0, alone.prompt_cache)


def test_each_kind_of_token_has_its_own_price_where_it_is_known() -> None:
    price = Price(input_pico=1000, output_pico=2000, input_audio_pico=10_000, reasoning_pico=5000)
    usage = Usage(
        input_total=10, input_audio=4, input_image=3, output_total=6, output_reasoning=2, output_audio=1
    )
    assert sell_of(usage, price) == Rated(64, 64, 6 * 1000 + 4 * 10_000 + 4 * 2000 + 2 * 5000)


def test_a_service_tier_costs_what_it_is_listed_for() -> None:
    price = Price(input_pico=1000, output_pico=2000)
    price.service_tiers.append(
        ServiceTierPrice(service_tier="flex", price=Price(input_pico=500, output_pico=1000))
    )
    usage = Usage(input_total=100, output_total=10, service_tier="flex")
    assert sell_of(usage, price).sell == 60
    usage.service_tier = "unheard-of"
    assert sell_of(usage, price).sell == 120
    # It may be served in either.
    assert bound(100, 10, price, service_tier="flex") == 120


RULES = {
    "everyone": Margin(model="*", basis_points=1),
    "wall": Margin(model="wall/*", basis_points=2),
    "wall gpt": Margin(model="wall/gpt-*", basis_points=3),
    "exact": Margin(model="wall/gpt-x", basis_points=4),
    "pro": Margin(plan="pro", model="*", basis_points=5),
    "mine": Margin(organisation_id="org_mine", model="*", basis_points=6),
    "my exact": Margin(organisation_id="org_mine", model="wall/gpt-x", basis_points=7),
}


@pytest.mark.parametrize(
    ("organisation", "model", "rule"),
    [
        ("org_a", "claude/y", "everyone"),
        ("org_a", "wall/other", "wall"),
        ("org_a", "wall/gpt-y", "wall gpt"),
        ("org_a", "wall/gpt-x", "exact"),
        ("org_pro", "wall/gpt-x", "pro"),
        ("org_mine", "wall/other", "mine"),
        ("org_mine", "wall/gpt-x", "my exact"),
    ],
)
def test_the_most_specific_margin_applies(organisation: str, model: str, rule: str) -> None:
    book = MarginBook("v", reversed(RULES.values()), {"org_pro": "pro", "org_mine": "pro"})
    for _ in range(2):
        found = book.of(organisation, model)
        assert found is not None
        assert found.basis_points == RULES[rule].basis_points


def test_who_is_on_no_plan_is_on_the_default_one() -> None:
    book = MarginBook("v", RULES.values(), {"*": "pro", "org_free": "free"})
    found = [book.of(organisation, "a/b") for organisation in ("org_a", "org_free")]
    assert [rule.basis_points for rule in found if rule is not None] == [5, 1]


def test_a_pattern_is_no_regular_expression() -> None:
    book = MarginBook("v", [Margin(model="a.b/(x)*", basis_points=1)])
    assert book.of("o", "a.b/(x)yz") is not None
    assert book.of("o", "aXb/(x)") is None
    assert MarginBook().of("o", "a/b") is None


def test_listed_prices_include_the_margin() -> None:
    price = Price(input_pico=1000, output_pico=2001)
    assert tokens_with_margin(price, None) == (1000, 2001)
    margin = Margin(basis_points=5000, floor_pico=10**9, fixed=Price(output_pico=1))
    assert tokens_with_margin(price, margin) == (1500, 3003)
    assert tokens_with_margin(price, Margin(free=True)) == (0, 0)
