"""The vendors' prices of media, from a file that is shipped: each number with its source and date."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omnihub.billing.v1.price_pb2 import Price, PriceKey

from services.billing.domain.price import make_price, pico, with_key
from services.billing.domain.price_book import PriceList
from services.billing.prices import configured_price
from services.billing.settings import PriceSettings

FILE = Path(__file__).with_name("media_prices.toml")
HOUR_S = 3600
_ABOUT = ("vendor", "models", "source", "read", "doubt", "free", "per_hour")


@dataclass(frozen=True, slots=True)
class Entry:
    """The price of some models of a vendor."""

    vendor: str
    models: tuple[str, ...]
    """Names, or patterns of names."""
    price: Price


def read_entries(path: Path = FILE) -> tuple[Entry, ...]:
    """Return the shipped prices. Raises ValueError for a file that says nothing certain."""
    rows: list[dict[str, Any]] = tomllib.loads(path.read_text())["prices"]
    return tuple(Entry(row["vendor"], tuple(row["models"]), _price(row)) for row in rows)


def _price(row: dict[str, Any]) -> Price:
    if not row.get("source") or not row.get("read"):
        raise ValueError(f"the price of {row['models']} needs `source` and `read`")
    if row.get("free"):
        return make_price("free", {})
    if "per_hour" in row:
        return make_price("media-prices", {"second_pico": pico(Decimal(row["per_hour"]), HOUR_S)})
    numbers = {name: value for name, value in row.items() if name not in _ABOUT}
    price = configured_price(PriceSettings.model_validate(numbers))
    price.source = "media-prices"
    return price


class MediaPriceList:
    """Finds list prices of media, and asks another list for everything else."""

    def __init__(self, entries: Sequence[Entry], others: PriceList) -> None:
        self._entries = entries
        self._others = others

    def find(self, vendor: str, model: str, *, exact_vendor: bool) -> Price | None:
        """Return the price of a model, or None."""
        for entry in self._entries:
            if entry.vendor == vendor and any(fnmatchcase(model.lower(), name) for name in entry.models):
                return entry.price
        return self._others.find(vendor, model, exact_vendor=exact_vendor)

    def all(self) -> Iterator[Price]:
        """Yield all prices, with their keys; each model once."""
        listed = set()
        for entry in self._entries:
            for model in entry.models:
                listed.add((entry.vendor, model))
                yield with_key(entry.price, PriceKey(provider=entry.vendor, model=model))
        for price in self._others.all():
            if (price.key.provider, price.key.model) not in listed:
                yield price
