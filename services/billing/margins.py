"""The margins in force: those of the file, and those that administrators set."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

from omnihub.billing.v1.price_pb2 import Margin

from services.billing.domain.errors import ManagedByFileError
from services.billing.domain.margin import book_version, versioned
from services.billing.domain.price import pico
from services.billing.domain.usage import microseconds
from services.billing.prices import EVERY_PRICE, configured_price
from services.billing.settings import MarginSettings
from services.billing.store.prices import ADMIN, CONFIGURED, TOPIC, MarginEntry, PriceStore
from services.common.change_feed import ChangeFeed
from services.credits.margins import EVERYONE_ELSE

Plans = Callable[[], Awaitable[Mapping[str, str]]]
"""Returns the plan of each organisation that has one."""


def configured_margin(settings: MarginSettings) -> Margin:
    """Return what omnihub.toml or an administrator says as a margin."""
    margin = Margin(
        organisation_id=settings.organisation,
        plan=settings.plan,
        model=settings.model or "*",
        basis_points=settings.basis_points,
        free=settings.free,
        floor_pico=pico(settings.floor),
    )
    if settings.fixed is not None:
        margin.fixed.CopyFrom(configured_price(settings.fixed, "margin"))
    return versioned(margin)


class Margins:
    """All margins, in memory."""

    def __init__(
        self,
        configured: Sequence[MarginSettings],
        store: PriceStore,
        feed: ChangeFeed,
        now: Callable[[], datetime],
        plans: Plans | None = None,
        default_plan: str = "",
    ) -> None:
        self._configured = {entry.scope: entry for entry in map(_configured_entry, configured)}
        self._store = store
        self._feed = feed
        self._clock = now
        self._plans_of = plans
        self._default_plan = default_plan
        self._count = 0
        self._administered: dict[tuple[str, str, str], MarginEntry] = {}
        self.version = ""
        self.margins: list[Margin] = []
        self.plans: dict[str, str] = {}

    async def start(self) -> None:
        """Keep what the file declares, and take over what is kept."""
        now = microseconds(self._clock())
        known = {entry.scope: entry for entry in await self._store.margins(CONFIGURED)}
        fresh = [
            MarginEntry(entry.margin, CONFIGURED, now)
            for scope, entry in self._configured.items()
            if scope not in known
            or known[scope].withdrawn
            or known[scope].margin.version != entry.margin.version
        ]
        gone = [
            MarginEntry(entry.margin, CONFIGURED, now, withdrawn=True)
            for scope, entry in known.items()
            if scope not in self._configured and not entry.withdrawn
        ]
        async with self._store.database.transaction() as connection:
            await self._store.add_margins(connection, [*fresh, *gone])
        await self._load()

    async def refresh(self) -> None:
        """Take over what another process has set, and who changed plans. Tells followers."""
        before = self.version
        if (await self._store.counts())[1] != self._count:
            await self._load()
        elif self._plans_of is not None:
            await self._take_plans()
        if before != self.version:
            async with self._store.database.transaction() as connection:
                await self._feed.append(connection, TOPIC, EVERY_PRICE)

    async def _load(self) -> None:
        entries = await self._store.margins(ADMIN)
        self._count = len(entries)
        last = {entry.scope: entry for entry in entries}
        self._administered = {scope: entry for scope, entry in last.items() if not entry.withdrawn}
        await self._take_plans()

    async def _take_plans(self) -> None:
        # What the file declares wins over what was set before it did.
        in_force = {**self._administered, **self._configured}
        self.margins = [entry.margin for entry in in_force.values()]
        named = {margin.plan for margin in self.margins if margin.plan}
        plans = dict(await self._plans_of()) if self._plans_of is not None and named else {}
        if self._default_plan in named:
            plans[EVERYONE_ELSE] = self._default_plan
            self.plans = plans
        else:
            self.plans = {organisation: plan for organisation, plan in plans.items() if plan in named}
        self.version = book_version(self.margins, self.plans)

    def in_force(self, entry: MarginEntry) -> bool:
        """Tell whether an entry is the one that counts for its scope."""
        current = self._configured.get(entry.scope) or self._administered.get(entry.scope)
        return (
            current is not None
            and not entry.withdrawn
            and current.source == entry.source
            and current.margin.version == entry.margin.version
            and entry.id >= current.id
        )

    async def set(self, entry: MarginEntry) -> MarginEntry:
        """Keep what an administrator sets. Returns what is in force when that is the same.

        Raises ManagedByFileError.
        """
        if entry.scope in self._configured:
            raise ManagedByFileError(
                f"omnihub.toml declares a margin for {entry.margin.model} of the same organisation and plan; "
                "change it there"
            )
        current = self._administered.get(entry.scope)
        if entry.withdrawn and current is None:
            return entry
        if current is not None and not entry.withdrawn and current.margin.version == entry.margin.version:
            return current
        async with self._store.database.transaction() as connection:
            await self._store.add_margins(connection, [entry])
            await self._feed.append(connection, TOPIC, EVERY_PRICE)
        await self._load()
        return self._administered.get(entry.scope, entry)


def _configured_entry(settings: MarginSettings) -> MarginEntry:
    return MarginEntry(configured_margin(settings), CONFIGURED, 0)
