"""Answers questions about prices off the event loop, and tells followers when an answer changed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from omnihub.billing.v1.price_pb2 import Price, PriceKey

from services.billing.domain.errors import ManagedByFileError
from services.billing.domain.price import make_price, pico, token_numbers, with_key
from services.billing.domain.price_book import PriceBook
from services.billing.domain.usage import microseconds
from services.billing.settings import SPECIAL_TOKENS, PriceSettings
from services.billing.store.prices import CONFIGURED, TOPIC, PriceEntry, PriceStore
from services.common.change_feed import ChangeFeed

# Said at each start: configured prices may be others than before.
EVERY_PRICE = "*"
# Answers that are looked at again; older ones are forgotten first.
REMEMBERED = 10_000
LONGEST_NAME = 300
FALLBACK = "fallback"
_MILLION = 10**6
_LISTED = "genai-prices"


def configured_price(settings: PriceSettings, source: str = CONFIGURED) -> Price:
    """Return what omnihub.toml or an administrator says as a price."""
    numbers: dict[str, int] = {}
    if settings.input_per_million is not None and settings.output_per_million is not None:
        numbers = token_numbers(
            pico(settings.input_per_million, _MILLION),
            pico(settings.output_per_million, _MILLION),
            *(
                None if value is None else pico(value, _MILLION)
                for value in (
                    settings.cached_input_per_million,
                    settings.cache_write_per_million,
                    settings.cache_write_1h_per_million,
                )
            ),
        )
    for kind in SPECIAL_TOKENS:
        value = getattr(settings, f"{kind}_per_million")
        if value is not None:
            numbers[f"{kind}_pico"] = pico(value, _MILLION)
    for unit in ("request", "image", "megapixel", "second", "character", "compute_second"):
        value = getattr(settings, f"per_{unit}")
        if value is not None:
            numbers[f"{unit}_pico"] = pico(value)
    return make_price(source, numbers)


def configured_book(prices: Mapping[str, PriceSettings]) -> dict[str, Price]:
    """Return several configured prices by name."""
    return {name: configured_price(settings) for name, settings in prices.items()}


class Prices:
    """The price book in use. Looking things up takes milliseconds, so it happens in threads."""

    def __init__(
        self,
        book: PriceBook,
        store: PriceStore,
        feed: ChangeFeed,
        now: Callable[[], datetime],
        fallback: Price | None = None,
    ) -> None:
        self._book = book
        self._store = store
        self._feed = feed
        self._clock = now
        self._fallback = fallback
        self._answered: OrderedDict[str, tuple[PriceKey, str]] = OrderedDict()
        self._kept: set[str] = set()
        self._listed: dict[tuple[str, str], str] = {}
        self._seen: set[int] = set()
        self._looked_at = 0

    def _now(self) -> int:
        return microseconds(self._clock())

    async def start(self) -> None:
        """Take over what is kept, keep what the file declares, and tell followers to forget every price."""
        self._looked_at = self._now()
        self._listed = await self._store.last_listed()
        await self._declare()
        await self._load()
        await self._announce([EVERY_PRICE])

    async def _declare(self) -> None:
        """Keep what the file declares, and what it does not any more."""
        now = self._now()
        declared = {
            name: _entry(price, now, configured_model=name) for name, price in self._book.configured.items()
        }
        for name, price in self._book.overrides.items():
            provider, _, model = name.partition("/")
            declared[name] = _entry(price, now, provider=provider, model=model)
        known = await self._store.declared()
        fresh = [
            entry
            for name, entry in declared.items()
            if name not in known or known[name].withdrawn or known[name].price.version != entry.price.version
        ]
        gone = [
            replace(entry, withdrawn=True, effective_from=now, recorded_at=now)
            for name, entry in known.items()
            if name not in declared and not entry.withdrawn
        ]
        async with self._store.database.transaction() as connection:
            await self._store.add_prices(connection, [*fresh, *gone], now)

    async def _load(self) -> set[str]:
        """Take over what administrators set, and return the names for which something new was set."""
        before = self._seen
        entries = await self._store.administered()
        self._seen = {entry.id for entry in entries}
        by_name: dict[str, list[tuple[int, Price | None]]] = {}
        for entry in entries:
            price = None if entry.withdrawn else entry.price
            if price is not None:
                price.source = "admin"
            by_name.setdefault(entry.name, []).append((entry.effective_from, price))
        for moments in by_name.values():
            # Of two that apply from the same moment the later one counts.
            moments.sort(key=lambda moment: moment[0])
        self._book.administered.replace(by_name)
        return {entry.name for entry in entries if entry.id not in before}

    def managed_by_file(self, entry: PriceEntry) -> bool:
        """Tell whether the file declares this version now."""
        declared = self._book.configured if entry.configured_model else self._book.overrides
        price = declared.get(entry.name)
        return (
            entry.source == CONFIGURED
            and not entry.withdrawn
            and price is not None
            and price.version == entry.price.version
        )

    async def set(self, entry: PriceEntry) -> PriceEntry:
        """Keep what an administrator sets. Returns what is in force when that is the same.

        Raises ManagedByFileError.
        """
        if entry.name in self._book.overrides:
            raise ManagedByFileError(
                f'omnihub.toml declares billing.prices."{entry.name}"; change it there', name=entry.name
            )
        last = await self._last(entry.name)
        same = last is not None and (
            last.withdrawn == entry.withdrawn and last.price.version == entry.price.version
        )
        if last is None and entry.withdrawn:
            return entry
        if last is not None and same and entry.effective_from >= last.effective_from:
            return last
        async with self._store.database.transaction() as connection:
            await self._store.add_prices(connection, [entry], entry.recorded_at)
            await self._feed.append(connection, TOPIC, entry.name[:256])
        await self._load()
        return entry

    async def _last(self, name: str) -> PriceEntry | None:
        entries = [entry for entry in await self._store.administered() if entry.name == name]
        return max(entries, key=lambda entry: (entry.effective_from, entry.id), default=None)

    async def refresh(self) -> None:
        """Take over what another process has set, and what begins to apply now. Tells followers."""
        now, changed = self._now(), set[str]()
        if (await self._store.counts())[0] != len(self._seen):
            changed = await self._load()
        changed |= self._book.administered.due(self._looked_at, now)
        self._looked_at = now
        # `provider/*` applies to names that only followers know.
        await self._announce(sorted(name[:256] for name in changed))

    async def find(self, keys: Iterable[PriceKey], *, fallback: bool = False) -> list[Price]:
        """Return the prices of those keys that have one."""
        wanted = list(keys)
        found = await asyncio.to_thread(self._find, wanted)
        for price in found:
            self._remember(price)
        if fallback and self._fallback is not None:
            known = {_name(price.key) for price in found}
            found += [with_key(self._fallback, key) for key in wanted if _name(key) not in known]
        await self._keep(found)
        return found

    async def _keep(self, prices: list[Price]) -> None:
        """Keep every version before anyone can be charged by it, and when list prices change."""
        now = self._now()
        fresh = [price for price in prices if price.version not in self._kept]
        if not fresh:
            return
        entries = []
        for price in fresh:
            name = price.key.vendor or price.key.provider, price.key.model[:LONGEST_NAME]
            if price.source == _LISTED and self._listed.get(name) != price.version:
                self._listed[name] = price.version
                entries.append(_entry(price, now, provider=name[0], model=name[1]))
        async with self._store.database.transaction() as connection:
            await self._store.add_prices(connection, entries, now)
            await self._store.keep(connection, fresh, now)
        self._kept.update(price.version for price in fresh)

    async def all(self) -> list[Price]:
        """Return all known prices."""
        now = self._now()
        return await asyncio.to_thread(lambda: list(self._book.all(now)))

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
        now = self._now()
        found = (self._book.find(key, now) for key in keys)
        return [price for price in found if price is not None]

    def _remember(self, price: Price) -> None:
        name = _name(price.key)
        self._answered[name] = (price.key, price.version)
        self._answered.move_to_end(name)
        if len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)

    async def _announce(self, names: list[str]) -> None:
        if names:
            async with self._store.database.transaction() as connection:
                await self._feed.append(connection, TOPIC, *names)


def _entry(
    price: Price, now: int, provider: str = "", model: str = "", configured_model: str = ""
) -> PriceEntry:
    return PriceEntry(
        provider[:LONGEST_NAME],
        model[:LONGEST_NAME],
        configured_model[:LONGEST_NAME],
        price,
        price.source,
        now,
        now,
    )


def _name(key: PriceKey) -> str:
    return "\n".join((key.configured_model, key.provider, key.model, key.vendor))
