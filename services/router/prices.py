"""Prices in memory: asked for once, dropped when billing says that they changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from omnihub.billing.v1 import billing_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.price_pb2 import Price, PriceKey
from omnihub.common.v1.change_pb2 import Change

from services.common.change_feed import Follower
from services.common.rpc import Call
from services.router.domain.catalogue import Target

TIMEOUT_S = 10.0
# A caller can name any model; names without a price must not fill the memory.
CACHE_SIZE = 10_000


class Prices:
    """The price of each target; None when it has none."""

    def __init__(self, billing: BillingService, vendors: Mapping[str, str]) -> None:
        self._billing = billing
        self._vendors = vendors
        self._prices: dict[tuple[Target, str], Price | None] = {}
        self._follower = Follower(billing.watch_changes, pb.WatchChangesRequest, self._forget)

    async def start(self) -> None:
        """Begin to follow changes."""
        self._follower.start()

    async def stop(self) -> None:
        """Stop following."""
        await self._follower.stop()

    def known(self, target: Target, configured_model: str) -> Price | None:
        """Return a price that `fetch` has brought."""
        return self._prices.get((target, configured_model))

    async def fetch(self, wanted: Iterable[tuple[Target, str]]) -> None:
        """Ask billing for the prices that are not in memory. Most requests need none."""
        missing = [key for key in wanted if key not in self._prices]
        if not missing:
            return
        if len(self._prices) > CACHE_SIZE:
            self._prices.clear()
        keys = [
            PriceKey(
                provider=target.provider,
                model=target.model,
                configured_model=configured_model,
                vendor=self._vendors.get(target.provider, ""),
            )
            for target, configured_model in missing
        ]
        answer = await self._billing.batch_get_prices(
            pb.BatchGetPricesRequest(keys=keys), Call.internal(TIMEOUT_S)
        )
        found = {
            (Target(price.key.provider, price.key.model), price.key.configured_model): price
            for price in answer.prices
        }
        for key in missing:
            self._prices[key] = found.get(key)

    async def _forget(self, _: Sequence[Change]) -> None:
        self._prices.clear()
