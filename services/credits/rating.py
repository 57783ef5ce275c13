"""Rating: what a usage costs at a price. Pure, so that rating again gives the same number.

The process that answers rates on the request path, billing rates again when it checks.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from omnihub.billing.v1.price_pb2 import Price, PriceTier
from omnihub.common.v1.chat_pb2 import Usage

from services.credits.money import decimal_to_nano_up, pico_to_nano

# No request costs more; a provider that says so is not believed.
LARGEST_PROVIDER_COST = Decimal(1_000_000)


def tier_of(price: Price, input_tokens: int) -> Price | PriceTier:
    """Return the numbers that apply to an input of this many tokens."""
    applying: Price | PriceTier = price
    for tier in price.tiers:
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


def rate(usage: Usage, price: Price) -> int:
    """Return the cost of `usage` in nano-credits, rounded up once. The provider's own figure wins."""
    provider_cost = provider_cost_of(usage)
    if provider_cost is not None:
        return decimal_to_nano_up(provider_cost)
    tier = tier_of(price, usage.input_total)
    plain_input = max(0, usage.input_total - usage.cache_read - usage.cache_write)
    cache_write = max(0, usage.cache_write - usage.cache_write_1h)
    pico = (
        plain_input * tier.input_pico
        + usage.cache_read * tier.cache_read_pico
        + cache_write * tier.cache_write_pico
        + usage.cache_write_1h * tier.cache_write_1h_pico
        + usage.output_total * tier.output_pico
        + price.request_pico
    )
    return pico_to_nano(pico)


def bound(input_tokens: int, output_tokens: int, price: Price) -> int:
    """Return the most that a request of this size can cost, in nano-credits."""
    usage = Usage(input_total=input_tokens, output_total=output_tokens)
    tier = tier_of(price, input_tokens)
    # Writing to a cache is dearer than reading plainly; a bound must cover it.
    dearest = max(tier.input_pico, tier.cache_write_pico, tier.cache_write_1h_pico)
    extra = input_tokens * (dearest - tier.input_pico)
    return rate(usage, price) + pico_to_nano(extra)


def covers_text(price: Price) -> bool:
    """Tell whether a price says what tokens cost: one that names only media would make a chat free."""
    media = price.image_pico or price.megapixel_pico or price.second_pico or price.character_pico
    return not media or bool(price.input_pico or price.output_pico or price.request_pico)
