"""The vendors' list prices, from the `genai-prices` package: its bundled snapshot, never its updater.

Importing the package takes about 25 ms once pydantic is loaded; its data (2,300 models) are read with the
first question, about 15 ms, and every method here belongs in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal

from genai_prices.data_snapshot import find_provider_by_id, get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices
from omnihub.billing.v1.price_pb2 import Price, PriceKey, PriceTier, ServiceTierPrice

from services.billing.domain.price import make_price, pico, token_numbers, version_of, with_key

MILLION = 10**6
# Below every threshold.
BASE = -1
_TOKEN_PRICES = {
    "input_pico": "input_mtok",
    "output_pico": "output_mtok",
    "cache_read_pico": "cache_read_mtok",
    "cache_write_pico": "cache_write_mtok",
    "cache_write_1h_pico": "cache_write_1h_mtok",
}
# Kinds of token that have a price of their own only where the list has one.
_SPECIAL_PRICES = {
    "reasoning_pico": "output_reasoning_mtok",
    "input_audio_pico": "input_audio_mtok",
    "output_audio_pico": "output_audio_mtok",
    "input_image_pico": "input_image_mtok",
    "output_image_pico": "output_image_mtok",
}
# Conditions of the list that a provider names as the tier it served a request in: theirs, and their value
# unless any value is the tier's name.
_TIER_CONDITIONS = {"service_tier": "", "processing": "batch"}
# Units besides tokens: theirs, ours, and how many of ours one price covers.
_UNIT_PRICES = (
    ("requests_kcount", "request_pico", 1000),
    ("input_mchars", "character_pico", MILLION),
    ("audio_hours", "second_pico", 3600),
    ("input_audio_hours", "second_pico", 3600),
)


class GenaiPriceList:
    """Finds list prices by vendor and model."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now

    def find(self, vendor: str, model: str, *, exact_vendor: bool) -> Price | None:
        """Return the current price of a model, or None. `exact_vendor` refuses look-alike names."""
        providers = get_snapshot().providers
        provider = find_provider_by_id(providers, vendor)
        if provider is None or (exact_vendor and provider.id != vendor):
            return None
        found = provider.find_model(model.lower(), all_providers=providers)
        return None if found is None else self._convert(found)

    def all(self) -> Iterator[Price]:
        """Yield all current prices, with their keys."""
        provider: Provider
        for provider in get_snapshot().providers:
            for model in provider.models:
                price = self._convert(model)
                if price is not None:
                    yield with_key(price, PriceKey(provider=provider.id, model=model.id))

    def _convert(self, model: ModelInfo) -> Price | None:
        price = self._in_context(model, {})
        if price is None:
            return None
        tiers = []
        for name, context in _service_tiers(model):
            served = self._in_context(model, context)
            if served is not None and served.version != price.version:
                tiers.append(ServiceTierPrice(service_tier=name, price=served))
        if tiers:
            price.service_tiers.extend(tiers)
            price.version = version_of(price)
        return price

    def _in_context(self, model: ModelInfo, context: dict[str, str]) -> Price | None:
        prices = model.get_prices(self._now(), context)
        numbers = _unit_numbers(prices)
        if prices.input_mtok is not None:
            numbers |= _token_numbers(prices, BASE) | _special_numbers(prices)
        elif not numbers and not model.id.endswith(":free"):
            # Priced by something we do not count, such as pages, or not at all: unknown, never free.
            return None
        tiers = [
            PriceTier(above_input_tokens=start, **_token_numbers(prices, start))
            for start in _thresholds(prices)
        ]
        return make_price("genai-prices", numbers, tiers, model.context_window or 0)


def _service_tiers(model: ModelInfo) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the tiers with a price of their own, each once, and the condition that stands for it."""
    seen = set()
    for variant in model.price_variants or ():
        if len(variant.when) != 1:
            continue
        ((condition, value),) = variant.when.items()
        name = str(value)
        if name not in seen and _TIER_CONDITIONS.get(condition) in ("", name):
            seen.add(name)
            yield name, {condition: name}


def _special_numbers(prices: ModelPrice) -> dict[str, int]:
    known = {ours: _applying(getattr(prices, theirs), BASE) for ours, theirs in _SPECIAL_PRICES.items()}
    return {ours: pico(each, MILLION) for ours, each in known.items() if each is not None}


def _thresholds(prices: ModelPrice) -> list[int]:
    values = [getattr(prices, name) for name in _TOKEN_PRICES.values()]
    return sorted({tier.start for value in values if isinstance(value, TieredPrices) for tier in value.tiers})


def _token_numbers(prices: ModelPrice, above: int) -> dict[str, int]:
    """Return the token prices of inputs just above a threshold, or the base prices."""
    known = {}
    for ours, theirs in _TOKEN_PRICES.items():
        each = _applying(getattr(prices, theirs), above)
        known[ours] = None if each is None else pico(each, MILLION)
    return token_numbers(
        known["input_pico"] or 0,
        known["output_pico"] or 0,
        known["cache_read_pico"],
        known["cache_write_pico"],
        known["cache_write_1h_pico"],
    )


def _applying(value: Decimal | TieredPrices | None, above: int) -> Decimal | None:
    if not isinstance(value, TieredPrices):
        return value
    applying = value.base
    for tier in value.tiers:
        if above >= tier.start:
            applying = tier.price
    return applying


def _unit_numbers(prices: ModelPrice) -> dict[str, int]:
    numbers = {}
    for theirs, ours, units in _UNIT_PRICES:
        value = getattr(prices, theirs)
        if isinstance(value, Decimal):
            numbers[ours] = pico(value, units)
    return numbers
