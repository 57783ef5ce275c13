"""Prices as whole pico-credits per unit, and their version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from decimal import ROUND_CEILING, Context, Decimal

from omnihub.billing.v1.price_pb2 import Price, PriceKey, PriceTier, ServiceTierPrice

PICO = 10**12
_CONTEXT = Context(prec=60)
_TOKENS = ("input_pico", "cache_read_pico", "cache_write_pico", "cache_write_1h_pico", "output_pico")
_UNITS = ("request_pico", "image_pico", "megapixel_pico", "second_pico", "character_pico")
# Part of the version only where they are set: versions from before they existed stay what they were.
_SPECIAL = (
    "reasoning_pico",
    "input_audio_pico",
    "output_audio_pico",
    "input_image_pico",
    "output_image_pico",
)


def pico(credits_for: Decimal, units: int = 1) -> int:
    """Return the pico-credits of one unit when `units` of them cost `credits_for`; rounded up."""
    each = _CONTEXT.divide(_CONTEXT.multiply(credits_for, Decimal(PICO)), Decimal(units))
    return int(each.to_integral_value(ROUND_CEILING, _CONTEXT))


def token_numbers(
    input_pico: int,
    output_pico: int,
    cache_read_pico: int | None = None,
    cache_write_pico: int | None = None,
    cache_write_1h_pico: int | None = None,
) -> dict[str, int]:
    """Return the five token prices. What has no price of its own costs what plain input costs."""
    write = input_pico if cache_write_pico is None else cache_write_pico
    return {
        "input_pico": input_pico,
        "output_pico": output_pico,
        "cache_read_pico": input_pico if cache_read_pico is None else cache_read_pico,
        "cache_write_pico": write,
        "cache_write_1h_pico": write if cache_write_1h_pico is None else cache_write_1h_pico,
    }


def version_of(price: Price) -> str:
    """Return a short hash of the numbers: equal numbers, equal version, in every process."""
    return "pv_" + hashlib.sha256(_text_of(price).encode()).hexdigest()[:24]


def _text_of(price: Price) -> str:
    numbers = [f"{name}={getattr(price, name)}" for name in (*_TOKENS, *_UNITS)]
    for tier in price.tiers:
        numbers.append(f"above={tier.above_input_tokens}")
        numbers += [f"{name}={getattr(tier, name)}" for name in _TOKENS]
    numbers += [f"{name}={getattr(price, name)}" for name in _SPECIAL if price.HasField(name)]  # type: ignore[arg-type]
    if price.compute_second_pico:
        numbers.append(f"compute_second_pico={price.compute_second_pico}")
    for other in price.service_tiers:
        numbers.append(f"{other.service_tier}=({_text_of(other.price)})")
    return ",".join(numbers)


def make_price(
    source: str,
    numbers: dict[str, int],
    tiers: Iterable[PriceTier] = (),
    context_length: int = 0,
    service_tiers: Iterable[ServiceTierPrice] = (),
) -> Price:
    """Return a price with its version and without a key."""
    price = Price(source=source, tiers=tiers, context_length=context_length, service_tiers=service_tiers)
    for name, number in numbers.items():
        setattr(price, name, number)
    price.version = version_of(price)
    return price


def with_key(price: Price, key: PriceKey) -> Price:
    """Return a copy of `price` that answers `key`."""
    answer = Price()
    answer.CopyFrom(price)
    answer.key.CopyFrom(key)
    return answer
