"""Which price applies: the file's first, then what administrators set, then the vendors' lists.

In full: the configured model; the file's `provider/model`; an administrator's `provider/model`; the file's
`provider/*`; an administrator's `provider/*`; free providers; the list of the vendor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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


class AdministeredPrices:
    """What administrators set: by name the moments from which a price applies, None where it ends."""

    def __init__(self) -> None:
        self._entries: Mapping[str, Sequence[tuple[int, Price | None]]] = {}

    def replace(self, entries: Mapping[str, Sequence[tuple[int, Price | None]]]) -> None:
        """Take over all entries, those of a name in the order in which they count. Safe between threads."""
        self._entries = entries

    def find(self, name: str, at: int) -> Price | None:
        """Return the price of a name at a moment, or None."""
        found = None
        for effective_from, price in self._entries.get(name, ()):
            if effective_from <= at:
                found = price
        return found

    def all(self, at: int) -> Iterator[tuple[str, Price]]:
        """Yield what is in force at a moment."""
        for name in self._entries:
            price = self.find(name, at)
            if price is not None:
                yield name, price

    def due(self, after: int, until: int) -> set[str]:
        """Return the names whose price changes in a period."""
        return {
            name
            for name, entries in self._entries.items()
            if any(after < effective_from <= until for effective_from, _ in entries)
        }


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
    administered: AdministeredPrices = field(default_factory=AdministeredPrices)

    def find(self, key: PriceKey, at: int = 0) -> Price | None:
        """Return the price for `key` at a moment, or None when nobody knows it. Unknown is never zero."""
        price = self._find(key, at)
        return None if price is None else with_key(price, key)

    def all(self, at: int = 0) -> Iterator[Price]:
        """Yield the price of every known model, each `provider/model` once."""
        for name, price in self.configured.items():
            yield with_key(price, PriceKey(configured_model=name))
        overridden = set()
        for name, price in (dict(self.administered.all(at)) | dict(self.overrides)).items():
            provider, _, model = name.partition("/")
            overridden.add((provider, model))
            yield with_key(price, PriceKey(provider=provider, model=model))
        for price in self.listed.all():
            provider = price.key.provider
            if (provider, price.key.model) not in overridden and (provider, "*") not in overridden:
                yield price

    def _find(self, key: PriceKey, at: int) -> Price | None:
        if key.configured_model in self.configured:
            return self.configured[key.configured_model]
        for name in (f"{key.provider}/{key.model}", f"{key.provider}/*"):
            price = self.overrides.get(name) or self.administered.find(name, at)
            if price is not None:
                return price
        if key.provider in self.free_providers or key.vendor in self.free_providers:
            return make_price("free", {})
        # A provider's name is whatever an operator chose: only a vendor said so may be matched loosely.
        return self.listed.find(key.vendor or key.provider, key.model, exact_vendor=not key.vendor)
