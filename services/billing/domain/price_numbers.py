"""Numbers of a price as decimals, the way omnihub.toml and the public contract write them."""

from __future__ import annotations

from decimal import Context, Decimal

from omnihub.billing.v1.price_pb2 import Price, PriceTier

PICO = 10**12
_CONTEXT = Context(prec=60)
# Name in decimals, name in pico-credits, how many units one decimal stands for.
NUMBERS = (
    ("input_per_million", "input_pico", 10**6),
    ("output_per_million", "output_pico", 10**6),
    ("cached_input_per_million", "cache_read_pico", 10**6),
    ("cache_write_per_million", "cache_write_pico", 10**6),
    ("cache_write_1h_per_million", "cache_write_1h_pico", 10**6),
    ("reasoning_per_million", "reasoning_pico", 10**6),
    ("input_audio_per_million", "input_audio_pico", 10**6),
    ("output_audio_per_million", "output_audio_pico", 10**6),
    ("input_image_per_million", "input_image_pico", 10**6),
    ("output_image_per_million", "output_image_pico", 10**6),
    ("per_request", "request_pico", 1),
    ("per_image", "image_pico", 1),
    ("per_megapixel", "megapixel_pico", 1),
    ("per_second", "second_pico", 1),
    ("per_character", "character_pico", 1),
    ("per_compute_second", "compute_second_pico", 1),
)


def decimals_of(price: Price | PriceTier) -> dict[str, str]:
    """Return the numbers of a price as decimals, without those that are zero."""
    known = {}
    for name, pico_name, units in NUMBERS:
        number = getattr(price, pico_name, 0)
        if number:
            known[name] = decimal_of(number, units)
    if not known:
        return {"per_request": "0"}
    return known


def decimal_of(pico: int, units: int = 1) -> str:
    """Return pico-credits for each unit as credits for `units` of them: exact, without an exponent."""
    exact = _CONTEXT.divide(_CONTEXT.multiply(Decimal(pico), Decimal(units)), Decimal(PICO))
    text = f"{exact:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
