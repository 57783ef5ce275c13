"""Prices in memory: asked for once, dropped when billing says that they changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from omnihub.billing.v1 import billing_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.price_pb2 import Price, PriceKey
from omnihub.common.v1.change_pb2 import Change

from services.common.change_feed import Follower
from services.common.rpc import Call
from services.credits.margins import NO_MARGINS, MarginBook
from services.credits.rating import covers_text
from services.router.domain.catalogue import Target

TIMEOUT_S = 10.0
# A caller can name any model; names without a price must not fill the memory.
CACHE_SIZE = 10_000
# What the contract allows in one question.
BATCH = 1000

Wanted = tuple[Target, str]
"""A target, and the name of the configured model that lists it or an empty string."""


class PriceTable(dict[Wanted, Price | None]):
    """The price of each target, None when it has none, and the margins that are added to them."""

    margins: MarginBook = NO_MARGINS


class Prices:
    """The prices that this process has asked for. `covers` tells whether a price says enough."""

    def __init__(
        self,
        billing: BillingService,
        vendors: Mapping[str, str],
        *,
        flag_unknown: bool = False,
        covers: Callable[[Price], bool] = covers_text,
    ) -> None:
        self._covers = covers
        self._billing = billing
        self._vendors = vendors
        self._flag_unknown = flag_unknown
        self._known = PriceTable()
        self.edition = object()
        """Another one whenever what `of` returned before may not hold any more."""
        self._follower = Follower(billing.watch_changes, pb.WatchChangesRequest, self._forget)

    async def start(self) -> None:
        """Begin to follow changes."""
        self._follower.start()

    async def stop(self) -> None:
        """Stop following."""
        await self._follower.stop()

    async def of(self, wanted: Iterable[Wanted]) -> PriceTable:
        """Return the prices as they are now. Only what is not in memory is asked for.

        The table is the caller's to keep: a request is paid at the prices it was admitted with.
        """
        known = self._known
        missing: list[Wanted] = []
        found = PriceTable()
        for key in wanted:
            if key in known:
                found[key] = known[key]
            else:
                missing.append(key)
        for start in range(0, len(missing), BATCH):
            found.update(await self._fetch(known, missing[start : start + BATCH]))
        found.margins = known.margins
        return found

    async def _fetch(self, known: PriceTable, missing: Sequence[Wanted]) -> Mapping[Wanted, Price | None]:
        keys = [
            PriceKey(
                provider=target.provider,
                model=target.model,
                configured_model=configured_model,
                vendor=self._vendors.get(target.provider, ""),
            )
            for target, configured_model in missing
        ]
        request = pb.BatchGetPricesRequest(
            keys=keys, include_fallback=self._flag_unknown, margins_version=known.margins.version
        )
        answer = await self._billing.batch_get_prices(request, Call.internal(TIMEOUT_S))
        priced = {
            (Target(price.key.provider, price.key.model), price.key.configured_model): price
            for price in answer.prices
            if self._covers(price)
        }
        fetched = {key: priced.get(key) for key in missing}
        if len(known) + len(fetched) > CACHE_SIZE:
            known.clear()
        # When prices changed meanwhile this goes into a memory that nobody reads any more.
        known.update(fetched)
        if answer.margins_version != known.margins.version:
            self.edition = object()
            known.margins = MarginBook(answer.margins_version, answer.margins, answer.plans)
        return fetched

    async def _forget(self, _: Sequence[Change]) -> None:
        self._known = PriceTable()
        self.edition = object()
