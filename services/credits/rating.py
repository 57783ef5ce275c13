"""Rating: what a usage costs at a price. Pure, so that rating again gives the same number.

The process that answers rates on the request path, billing rates again when it checks. Everything is
computed exactly, in pico-credits, and rounded up to whole nano-credits once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

from omnihub.billing.v1.price_pb2 import Margin, Price, PriceTier
from omnihub.billing.v1.usage_pb2 import Charge, ChargePart, Units
from omnihub.common.v1.chat_pb2 import Usage

from services.credits.money import PICO_PER_NANO

# No request costs more; a provider that says so is not believed.
LARGEST_PROVIDER_COST = Decimal(1_000_000)
BASIS = 10_000
PICO = 10**12
MILLION = 10**6
THOUSAND = 1000

Exact = int | Fraction
"""Pico-credits; a fraction where units are finer than the price."""


class Rated(NamedTuple):
    """What a usage costs."""

    cost: int
    """What the provider takes, in nano-credits, rounded up."""
    sell: int
    """What is charged for it, in nano-credits, rounded up."""
    exact: Exact
    """What is charged for it before it is rounded, in pico-credits."""

    @property
    def rounding(self) -> Exact:
        """Return what rounding adds, in pico-credits: at least 0, less than a nano-credit."""
        return self.sell * PICO_PER_NANO - self.exact

    @property
    def rounding_pico(self) -> int:
        """Return the same in whole pico-credits, from 0 to 999."""
        return int(self.sell * PICO_PER_NANO - math.ceil(self.exact))


def round_up(amount: Exact) -> int:
    """Return pico-credits as whole nano-credits, rounded up."""
    return int(-(-amount // PICO_PER_NANO))


def for_service_tier(price: Price, service_tier: str) -> Price:
    """Return what applies to requests served in this tier; an unknown tier costs what the default does."""
    if service_tier:
        for tier in price.service_tiers:
            if tier.service_tier == service_tier:
                return tier.price
    return price


def tier_of(price: Price, input_tokens: int) -> Price | PriceTier:
    """Return the numbers that apply to an input of this many tokens."""
    applying: Price | PriceTier = price
    tiers = price.tiers
    if not tiers:
        return price
    for tier in tiers:
        if input_tokens > tier.above_input_tokens:
            applying = tier
    return applying


def provider_cost_of(usage: Usage) -> Decimal | None:
    """Return what the provider says it charged, or None when it says nothing that can be an amount."""
    if not usage.provider_cost:
        return None
    try:
        cost = Decimal(usage.provider_cost)
    except InvalidOperation:
        return None
    return cost if cost.is_finite() and 0 <= cost <= LARGEST_PROVIDER_COST else None


def priced(usage: Usage, price: Price, units: Units | None = None) -> Exact:
    """Return what `usage` and `units` cost at a price, in pico-credits, whatever the provider says."""
    if service_tier := usage.service_tier:
        price = for_service_tier(price, service_tier)
    tier = tier_of(price, usage.input_total)
    plain_input, cache_read, cache_write = usage.input_total, usage.cache_read, usage.cache_write
    amount: Exact = usage.output_total * tier.output_pico + price.request_pico
    if cache_read or cache_write or usage.cache_write_1h:
        plain_input = max(0, plain_input - cache_read - cache_write)
        amount += (
            cache_read * tier.cache_read_pico
            + max(0, cache_write - usage.cache_write_1h) * tier.cache_write_pico
            + usage.cache_write_1h * tier.cache_write_1h_pico
        )
    amount += plain_input * tier.input_pico
    special = usage.output_reasoning or usage.input_audio or usage.output_audio
    if special or usage.input_image or usage.output_image:
        amount += _special(usage, price, tier, plain_input)
    return amount if units is None else amount + _of_units(units, price)


def _special(usage: Usage, price: Price, tier: Price | PriceTier, plain_input: int) -> int:
    """Return what kinds of token with a price of their own cost beyond what they cost as plain ones."""
    more, rest = 0, plain_input
    for kind, tokens in (("input_audio_pico", usage.input_audio), ("input_image_pico", usage.input_image)):
        if price.HasField(kind):  # type: ignore[arg-type]
            tokens = min(tokens, rest)
            rest -= tokens
            more += tokens * (getattr(price, kind) - tier.input_pico)
    rest = usage.output_total
    for kind, tokens in (
        ("output_audio_pico", usage.output_audio),
        ("output_image_pico", usage.output_image),
        ("reasoning_pico", usage.output_reasoning),
    ):
        if price.HasField(kind):  # type: ignore[arg-type]
            tokens = min(tokens, rest)
            rest -= tokens
            more += tokens * (getattr(price, kind) - tier.output_pico)
    return more


def _of_units(units: Units, price: Price) -> Exact:
    return (
        units.images * price.image_pico
        + units.characters * price.character_pico
        + Fraction(units.pixels * price.megapixel_pico, MILLION)
        + Fraction(units.milliseconds * price.second_pico, THOUSAND)
        + Fraction(units.compute_milliseconds * price.compute_second_pico, THOUSAND)
    )


def cost_of(usage: Usage, price: Price, units: Units | None = None) -> Exact:
    """Return what the provider takes, in pico-credits. Its own figure wins."""
    provider_cost = provider_cost_of(usage)
    if provider_cost is None:
        return priced(usage, price, units)
    return Fraction(provider_cost) * PICO


def with_margin(cost: Exact, fixed: Exact, margin: Margin) -> Exact:
    """Return what is charged for something that costs `cost`, in pico-credits."""
    if margin.free:
        return 0
    if margin.basis_points:
        share = cost * (BASIS + margin.basis_points)
        whole, rest = divmod(share, BASIS)
        # Fractions take several times as long, and are seldom needed.
        cost = whole if not rest else Fraction(share) / BASIS
    return max(cost + fixed, margin.floor_pico)


def tokens_with_margin(price: Price, margin: Margin | None) -> tuple[int, int]:
    """Return what an input and an output token are sold for, in pico-credits, rounded up."""
    if margin is None:
        return price.input_pico, price.output_pico
    plain = Margin(basis_points=margin.basis_points, free=margin.free)
    sold = (
        with_margin(price.input_pico, margin.fixed.input_pico, plain),
        with_margin(price.output_pico, margin.fixed.output_pico, plain),
    )
    return math.ceil(sold[0]), math.ceil(sold[1])


def sell_of(
    usage: Usage,
    price: Price,
    margin: Margin | None = None,
    limit: int | None = None,
    units: Units | None = None,
) -> Rated:
    """Return what `usage` costs with a margin. `limit`: nano-credits that are not exceeded."""
    cost = sell = cost_of(usage, price, units)
    if margin is not None:
        fixed = priced(usage, margin.fixed, units) if margin.HasField("fixed") else 0
        sell = with_margin(cost, fixed, margin)
    if limit is not None:
        sell = min(sell, limit * PICO_PER_NANO)
    return Rated(round_up(cost), round_up(sell), sell)


def rate(usage: Usage, price: Price) -> int:
    """Return the cost of `usage` in nano-credits, rounded up once. The provider's own figure wins."""
    return round_up(cost_of(usage, price))


def bound(
    input_tokens: int,
    output_tokens: int,
    price: Price,
    margin: Margin | None = None,
    *,
    media: bool = False,
    service_tier: str = "",
) -> int:
    """Return the most that a request of this size can cost, in nano-credits, margin included.

    `media`: the input or the output may be other than text. A request that asks for a service tier may be
    served in it or not.
    """
    most = _most(input_tokens, output_tokens, price, media)
    asked = for_service_tier(price, service_tier)
    if asked is not price:
        most = max(most, _most(input_tokens, output_tokens, asked, media))
    if margin is not None:
        fixed = _most(input_tokens, output_tokens, margin.fixed, media) if margin.HasField("fixed") else 0
        return round_up(with_margin(most, fixed, margin))
    return round_up(most)


def _most(input_tokens: int, output_tokens: int, price: Price, media: bool) -> int:
    # A long context may also be cheaper: where it begins is known only afterwards.
    dearest = 0
    applying = tier_of(price, input_tokens)
    levels = {id(price): price, id(applying): applying} if price.tiers else {id(price): price}
    for level in levels.values():
        each_input, each_output = _dearest_tokens(level, price, media)
        dearest = max(dearest, input_tokens * each_input + output_tokens * each_output)
    return dearest + price.request_pico


def _dearest_tokens(level: Price | PriceTier, price: Price, media: bool) -> tuple[int, int]:
    """Return the most that one token of input and one of output can cost, in pico-credits."""
    # Writing to a cache is dearer than reading plainly; a bound must cover it.
    each_input = max(level.input_pico, level.cache_write_pico, level.cache_write_1h_pico)
    each_output = level.output_pico
    if price.reasoning_pico:
        each_output = max(each_output, price.reasoning_pico)
    if media:
        each_input = max(each_input, price.input_audio_pico, price.input_image_pico)
        each_output = max(each_output, price.output_audio_pico, price.output_image_pico)
    return each_input, each_output


def bound_at(
    price: Price, margin: Margin | None = None, *, media: bool = False, service_tier: str = ""
) -> Callable[[int, int], int]:
    """Return `bound` for one price, read once: a request needs it for each of its candidates."""
    if margin is not None or price.tiers or for_service_tier(price, service_tier) is not price:
        return lambda given, taken: bound(given, taken, price, margin, media=media, service_tier=service_tier)
    each_input, each_output = _dearest_tokens(price, price, media)
    each_request = price.request_pico
    return lambda given, taken: -(-(given * each_input + taken * each_output + each_request) // PICO_PER_NANO)


def covers_text(price: Price) -> bool:
    """Tell whether a price says what tokens cost: one that names only media would make a chat free."""
    media = (
        price.image_pico
        or price.megapixel_pico
        or price.second_pico
        or price.character_pico
        or price.compute_second_pico
    )
    return not media or bool(price.input_pico or price.output_pico or price.request_pico)


class UnknownVersionError(LookupError):
    """A price or margin that a charge was rated with is not known."""


def rate_again(
    charge: Charge,
    price_of: Callable[[str], Price | None],
    margin_of: Callable[[str], Margin | None],
) -> Rated:
    """Return what a charge comes to with the versions it was rated with. Raises UnknownVersionError."""
    if not charge.parts:
        return _again(charge, charge.units, price_of, margin_of)
    rated = [_again(part, None, price_of, margin_of) for part in charge.parts]
    return Rated(
        sum(each.cost for each in rated),
        sum(each.sell for each in rated),
        sum((each.exact for each in rated), 0),
    )


def _again(
    item: Charge | ChargePart,
    units: Units | None,
    price_of: Callable[[str], Price | None],
    margin_of: Callable[[str], Margin | None],
) -> Rated:
    price = price_of(item.price_version) if item.price_version else Price()
    if price is None:
        raise UnknownVersionError(f"the price {item.price_version} is not known")
    margin = None
    if item.margin_version:
        margin = margin_of(item.margin_version)
        if margin is None:
            raise UnknownVersionError(f"the margin {item.margin_version} is not known")
    limit = item.limit_nano_credits if item.HasField("limit_nano_credits") else None
    return sell_of(item.usage, price, margin, limit, units)
