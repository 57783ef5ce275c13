"""Answers questions about prices off the event loop, and tells followers when an answer changed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from omnihub.billing.v1.price_pb2 import Price, PriceKey

from services.billing.domain.price import make_price, pico, token_numbers
from services.billing.domain.price_book import PriceBook
from services.billing.settings import PriceSettings
from services.common.change_feed import ChangeFeed
from services.common.db import Database

TOPIC = "price"
# Said at each start: configured prices may be others than before.
EVERY_PRICE = "*"
# Answers that are looked at again; older ones are forgotten first.
REMEMBERED = 10_000
_MILLION = 10**6


def configured_price(settings: PriceSettings) -> Price:
    """Return what omnihub.toml says as a price."""
    numbers: dict[str, int] = {}
    if settings.input_per_million is not None and settings.output_per_million is not None:
        cached, written = settings.cached_input_per_million, settings.cache_write_per_million
        numbers = token_numbers(
            pico(settings.input_per_million, _MILLION),
            pico(settings.output_per_million, _MILLION),
            None if cached is None else pico(cached, _MILLION),
            None if written is None else pico(written, _MILLION),
        )
    for unit in ("request", "image", "megapixel", "second", "character"):
        value = getattr(settings, f"per_{unit}")
        if value is not None:
            numbers[f"{unit}_pico"] = pico(value)
    return make_price("configured", numbers)


def configured_book(prices: Mapping[str, PriceSettings]) -> dict[str, Price]:
    """Return several configured prices by name."""
    return {name: configured_price(settings) for name, settings in prices.items()}


class Prices:
    """The price book in use. Looking things up takes milliseconds, so it happens in threads."""

    def __init__(self, book: PriceBook, database: Database, feed: ChangeFeed) -> None:
        self._book = book
        self._database = database
        self._feed = feed
        self._answered: OrderedDict[str, tuple[PriceKey, str]] = OrderedDict()

    async def find(self, keys: Iterable[PriceKey]) -> list[Price]:
        """Return the prices of those keys that have one."""
        found = await asyncio.to_thread(self._find, list(keys))
        for price in found:
            self._remember(price)
        return found

    async def all(self) -> list[Price]:
        """Return all known prices."""
        return await asyncio.to_thread(lambda: list(self._book.all()))

    async def announce_all(self) -> None:
        """Tell followers to forget every price."""
        await self._announce([EVERY_PRICE])

    async def check(self) -> None:
        """Look at the answered prices again and announce those that changed, by date or by hour."""
        before = list(self._answered.items())
        found = await asyncio.to_thread(self._find, [key for _, (key, _) in before])
        versions = {_name(price.key): price.version for price in found}
        changed = [key for name, (key, version) in before if versions.get(name) != version]
        for price in found:
            self._remember(price)
        await self._announce(sorted({f"{key.provider}/{key.model}"[:256] for key in changed}))

    def _find(self, keys: list[PriceKey]) -> list[Price]:
        return [price for price in map(self._book.find, keys) if price is not None]

    def _remember(self, price: Price) -> None:
        name = _name(price.key)
        self._answered[name] = (price.key, price.version)
        self._answered.move_to_end(name)
        if len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)

    async def _announce(self, names: list[str]) -> None:
        if names:
            async with self._database.transaction() as connection:
                await self._feed.append(connection, TOPIC, *names)


def _name(key: PriceKey) -> str:
    return "\n".join((key.configured_model, key.provider, key.model, key.vendor))
