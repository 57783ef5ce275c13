"""Which price applies: configured first, then overrides, then free providers, then the vendors' lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from omnihub.billing.v1.price_pb2 import Price, PriceKey

from services.billing.domain.price import make_price, with_key


class PriceList(Protocol):
    """Prices as vendors publish them."""

    def find(self, vendor: str, model: str, *, exact_vendor: bool) -> Price | None:
        """Return the current price of a model, or None. `exact_vendor` refuses look-alike names."""
        ...

    def all(self) -> Iterator[Price]:
        """Yield all current prices, with their keys."""
        ...


@dataclass(frozen=True, slots=True)
class PriceBook:
    """The sources of prices, in the order in which they count."""

    configured: Mapping[str, Price]
    """By name of the configured model."""
    overrides: Mapping[str, Price]
    """By `provider/model`, or `provider/*` for all models of a provider."""
    free_providers: frozenset[str]
    """Names of providers or vendors that cost nothing."""
    listed: PriceList

    def find(self, key: PriceKey) -> Price | None:
        """Return the price for `key`, or None when nobody knows it. Unknown is never zero."""
        price = self._find(key)
        return None if price is None else with_key(price, key)

    def all(self) -> Iterator[Price]:
        """Yield the price of every known model, each `provider/model` once."""
        for name, price in self.configured.items():
            yield with_key(price, PriceKey(configured_model=name))
        overridden = set()
        for name, price in self.overrides.items():
            provider, _, model = name.partition("/")
            overridden.add((provider, model))
            yield with_key(price, PriceKey(provider=provider, model=model))
        for price in self.listed.all():
            provider = price.key.provider
            if (provider, price.key.model) not in overridden and (provider, "*") not in overridden:
                yield price

    def _find(self, key: PriceKey) -> Price | None:
        if key.configured_model in self.configured:
            return self.configured[key.configured_model]
        for name in (f"{key.provider}/{key.model}", f"{key.provider}/*"):
            if name in self.overrides:
                return self.overrides[name]
        if key.provider in self.free_providers or key.vendor in self.free_providers:
            return make_price("free", {})
        # A provider's name is whatever an operator chose: only a vendor said so may be matched loosely.
        return self.listed.find(key.vendor or key.provider, key.model, exact_vendor=not key.vendor)
