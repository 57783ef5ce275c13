"""Wiring of the router: the only place where its objects are made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.provider.v1 import provider_service_pb2
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.router.v1.router_service_api import RouterService

from services.common.rpc import Call, RpcError
from services.common.service import Infrastructure, Service
from services.credits.money import parse_nano
from services.router.admission import Admission
from services.router.counting import Counting
from services.router.domain.catalogue import Catalogue, Provider
from services.router.execution import Execution
from services.router.health import Health
from services.router.journal import Journal
from services.router.latency import Latencies
from services.router.leases import Leases
from services.router.media.server import MediaRouterServer
from services.router.media.speech import Speech
from services.router.prices import Prices
from services.router.server import RouterServer
from services.router.settings import RouterSettings, RouteSettings
from services.router.settlement import Settlement
from services.router.store import JournalStore

MIGRATIONS = Path(__file__).parent / "migrations"
# Answers without a key or a network, so that a newcomer's first request does.
LOCAL_MODEL = "local/echo"
PEER_TIMEOUT_S = 10.0
PEER_RETRY_S = 0.5
# A plugin that is registered while running can be named within 5 s.
REFRESH_S = 2.0

_logger = logging.getLogger(__name__)


class RouterApp:
    """The router's objects and their life."""

    def __init__(
        self,
        settings: RouterSettings,
        routes: Mapping[str, RouteSettings],
        vendors: Mapping[str, str],
        infrastructure: Infrastructure,
    ) -> None:
        self._routes = {LOCAL_MODEL: RouteSettings(route=[LOCAL_MODEL]), **routes}
        self._settings = settings
        self._database = infrastructure.database("router")
        self._providers = infrastructure.connector.connect(ProviderService, "providers")
        billing = infrastructure.connector.connect(BillingService, "billing")
        self._store = JournalStore(self._database)
        self._journal = Journal(
            self._database,
            infrastructure.instance_id,
            survive_power_loss=settings.journal_survives_power_loss,
        )
        self._settlement = Settlement(
            self._store, self._journal, billing, infrastructure.instance_id, settings.settle_interval_s
        )
        self._leases = Leases(
            billing,
            infrastructure.instance_id,
            parse_nano(settings.lease_minimum),
            parse_nano(settings.lease_maximum),
            self._settlement.settle_lease,
        )
        self._prices = Prices(billing, vendors)
        self._admission = Admission(settings, self._prices, self._leases, self._journal, Latencies())
        self._refresh: asyncio.Task[None] | None = None
        health = Health(settings.breaker)
        execution = Execution(self._providers, self._admission, health, settings.retry_after_limit_s)
        self.server = RouterServer(
            self._admission, execution, self._store, Counting(self._admission, self._providers)
        )
        makers = infrastructure.connector.connect(MediaProviderService, "providers")
        self._speech = Speech(makers, self._leases, self._journal, health)
        self.media = MediaRouterServer(
            makers,
            billing,
            lambda: self._admission.catalogue,
            lambda provider: vendors.get(provider, ""),
            health,
            self._speech,
        )

    async def start(self) -> None:
        """Replay what a crash left in the journal, then serve."""
        await self._database.migrate(MIGRATIONS)
        self._journal.start()
        await _until_reachable(self._settlement.replay)
        await self._prices.start()
        await _until_reachable(self._load_catalogue)
        self._settlement.start(self._leases, self._settings.decision_retention_days)
        self._refresh = asyncio.create_task(self._keep_catalogue())

    async def stop(self) -> None:
        """Write and settle everything, return the leases."""
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.gather(self._refresh, return_exceptions=True)
        await self._admission.drain()
        await self._speech.drain()
        try:
            await self._settlement.stop()
            await self._leases.close()
        except RpcError as error:
            _logger.warning("settlement_left_for_next_start %s", error)
        finally:
            await self._journal.stop()
            await self._prices.stop()
            await self._database.close()

    async def check(self) -> None:
        """Raise when a request would fail."""
        await self._database.ping()

    async def _load_catalogue(self) -> None:
        request = provider_service_pb2.GetCapabilitiesRequest()
        answer = await self._providers.get_capabilities(request, Call.internal(PEER_TIMEOUT_S))
        providers = [
            Provider(each.provider, each.adapter, frozenset(each.features), each.synthetic)
            for each in answer.providers
        ]
        self._admission.catalogue = Catalogue.build(self._routes, providers)

    async def _keep_catalogue(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self._load_catalogue()
            except RpcError as error:
                _logger.warning("catalogue_not_refreshed %s", error)


async def _until_reachable(work: Callable[[], Awaitable[None]]) -> None:
    """Repeat `work` while a peer is still starting."""
    while True:
        try:
            return await work()
        except RpcError as error:
            if error.reason not in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                raise
            _logger.info("waiting_for_peer %s", error.message)
        await asyncio.sleep(PEER_RETRY_S)


def build(
    settings: RouterSettings,
    infrastructure: Infrastructure,
    *,
    routes: Mapping[str, RouteSettings],
    vendors: Mapping[str, str],
) -> Service:
    """Build the router. `vendors` names the price list of each configured provider."""
    app = RouterApp(settings, routes, vendors, infrastructure)
    return Service(
        name="router",
        interfaces=[(RouterService, app.server), (MediaRouterService, app.media)],
        start=app.start,
        stop=app.stop,
        check=app.check,
    )
