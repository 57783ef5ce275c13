"""Wiring of the router: the only place where its objects are made."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.provider.v1 import provider_service_pb2
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.provider.v1.stored_response_service_api import StoredResponseService
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.router.v1.provider_health_service_api import ProviderHealthService
from omnihub.router.v1.registry_service_api import RegistryService
from omnihub.router.v1.response_service_api import ResponseService
from omnihub.router.v1.router_service_api import RouterService
from omnihub.router.v1.routing_policy_service_api import RoutingPolicyService

from services.common.change_feed import ChangeFeed
from services.common.crash import CrashPoints
from services.common.rpc import Call, RpcError
from services.common.service import Infrastructure, Service
from services.credits.media_rating import covers_media
from services.credits.money import parse_nano
from services.router.accounting.budget_rules import BudgetRules
from services.router.accounting.budgets import Budgets
from services.router.accounting.journal import Journal
from services.router.accounting.leases import Leases
from services.router.accounting.prices import Prices
from services.router.accounting.settlement import Settlement
from services.router.accounting.store import JournalStore
from services.router.admission import Admission
from services.router.cache.answer_store import KeptAnswers
from services.router.cache.caching import AnswerCache
from services.router.domain.catalogue import Catalogue, Provider
from services.router.execution.counting import Counting
from services.router.execution.execution import Execution
from services.router.health.health import Health
from services.router.health.latency import Latencies
from services.router.health.server import ProviderHealthServer
from services.router.health.sharing import HealthSharing
from services.router.health.store import HealthStore
from services.router.media.server import MediaRouterServer
from services.router.media.speech import Speech
from services.router.planning.detection import Detector
from services.router.planning.planner import Planner
from services.router.planning.policies import Policies
from services.router.planning.policy_server import RoutingPolicyServer
from services.router.planning.policy_store import PolicyStore
from services.router.registry.importing import seed
from services.router.registry.registry import ModelRegistry, check_file
from services.router.registry.server import RegistryServer
from services.router.registry.sources import shipped
from services.router.registry.store import ModelStore, changes
from services.router.repeating import repeat
from services.router.responses.server import ResponseServer
from services.router.responses.store import ResponseStore
from services.router.responses.stored_responses import StoredResponses
from services.router.server import RouterServer
from services.router.settings import RouterSettings, RouteSettings

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
        own_services: Mapping[str, str],
        infrastructure: Infrastructure,
    ) -> None:
        routes = {LOCAL_MODEL: RouteSettings(route=[LOCAL_MODEL]), **routes}
        check_file(routes)
        self._own_services = own_services
        self._settings = settings
        self._database = infrastructure.database("router")
        self._providers = infrastructure.connector.connect(ProviderService, "providers")
        billing = infrastructure.connector.connect(BillingService, "billing")
        self._store = JournalStore(self._database)
        crash = CrashPoints(settings.crash_at)
        self._journal = Journal(
            self._database,
            infrastructure.instance_id,
            survive_power_loss=settings.journal_survives_power_loss,
            crash=crash,
        )
        self._settlement = Settlement(
            self._store, self._journal, billing, infrastructure.instance_id, settings.settle_interval_s, crash
        )
        self._leases = Leases(
            billing,
            infrastructure.instance_id,
            parse_nano(settings.lease_minimum),
            parse_nano(settings.lease_maximum),
            self._settlement.settle_lease,
            slices=settings.leases,
            crash=crash,
        )
        self._prices = Prices(billing, vendors, flag_unknown=settings.unknown_price == "flag")
        limits = infrastructure.connector.connect(BudgetService, "billing")
        self._budgets = Budgets(
            limits,
            lambda on_change: BudgetRules(billing, limits, on_change),
            infrastructure.instance_id,
            self._settlement.replay,
        )
        keeper = infrastructure.connector.connect(StoredResponseService, "providers")
        self._response_store = ResponseStore(
            self._database, infrastructure.instance_id, self._journal.unbooked.look_there
        )
        self._sweeper: asyncio.Task[None] | None = None
        health, latencies = Health(settings.breaker), Latencies()
        detector = Detector(self._providers, settings.task_model, settings.task_model_limit_s)
        policy_store = PolicyStore(self._database)
        self._policies = Policies(policy_store)
        planner = Planner(
            settings,
            self._prices,
            latencies,
            detector,
            health.pause,
            self._policies.of,
            self._budgets.rules.of,
        )
        self._answers: KeptAnswers | None = None
        if settings.cache.persist:
            self._answers = KeptAnswers(self._database, settings.cache.persist_mb * 2**20)
        cache = AnswerCache(settings.cache, self._answers)
        self._admission = Admission(
            settings, self._prices, self._leases, self._journal, latencies, planner, cache, self._budgets
        )
        self._responses = StoredResponses(self._response_store, keeper, self._admission.pending)
        self._refresh: asyncio.Task[None] | None = None
        feed = ChangeFeed(self._database, changes, sole_writer=False)
        self._models = ModelStore(self._database, feed)
        self._registry = ModelRegistry(routes, self._models, feed, self._use)
        self.registry_server = RegistryServer(self._registry, self._admission, feed)
        self._admission.measurements = health.measurements
        health_store, instance_id = HealthStore(self._database), infrastructure.instance_id
        self._sharing = HealthSharing(
            health,
            health_store,
            instance_id,
            settings.health.share_interval_s,
            settings.health.retention_days,
        )
        self.health_server = ProviderHealthServer(health, self._sharing, health_store, instance_id)
        execution = Execution(self._providers, self._admission, health, settings.retry_after_limit_s)
        self.policy_server = RoutingPolicyServer(policy_store, self._policies)
        self.server = RouterServer(
            self._admission,
            execution,
            self._store,
            Counting(self._admission, self._providers),
            self._responses,
        )
        self.response_server = ResponseServer(self._responses)
        makers = infrastructure.connector.connect(MediaProviderService, "providers")
        self._speech = Speech(makers, self._leases, self._journal, health, self._budgets)
        self._media_prices = Prices(billing, vendors, covers=covers_media)
        self.media = MediaRouterServer(
            makers,
            self._media_prices,
            lambda: self._admission.catalogue,
            health,
            self._speech,
            self._budgets.rules.of,
        )

    async def start(self) -> None:
        """Replay what a crash left in the journal, then serve."""
        await self._database.migrate(MIGRATIONS)
        self._journal.start()
        await _until_reachable(self._replay)
        await self._policies.start()
        await self._prices.start()
        await self._media_prices.start()
        self._budgets.rules.start()
        await _until_reachable(self._budgets.rules.load)
        if self._settings.seed_models and not await self._models.read():
            await seed(self._models, await asyncio.to_thread(shipped))
        await self._registry.start()
        await _until_reachable(self._load_providers)
        self._settlement.start(self._leases, self._settings.decision_retention_days)
        self._budgets.start()
        self._refresh = asyncio.create_task(repeat(self._load_providers, REFRESH_S))
        self._sharing.start()
        if self._answers is not None:
            self._answers.start()
        self._sweeper = asyncio.create_task(repeat(self._sweep_responses, self._settings.background_poll_s))

    async def stop(self) -> None:
        """Write and settle everything, return the leases."""
        for task in filter(None, (self._refresh, self._sweeper)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._registry.stop()
        await self._admission.drain()
        await self._sharing.stop()
        if self._answers is not None:
            await self._answers.stop()
        await self._speech.drain()
        try:
            await self._return_all()
        finally:
            await self._journal.stop()
            await self._policies.stop()
            await self._prices.stop()
            await self._media_prices.stop()
            await self._budgets.stop()
            await self._budgets.rules.stop()
            await self._database.close()

    async def _return_all(self) -> None:
        """Book all charges, return leases and slices. A charge that billing fails at keeps only its lease."""
        for step in (self._settlement.stop, self._leases.close, self._budgets.close):
            try:
                await step()
            except RpcError as error:
                _logger.warning("settlement_left_for_next_start %s", error)
                if error.reason != "INTERNAL":
                    break

    async def check(self) -> None:
        """Raise when a request would fail."""
        await self._database.ping()

    async def _replay(self) -> None:
        try:
            await self._settlement.replay()
        except RpcError as error:
            if error.reason != "INTERNAL":
                raise
            # Some of them, and the leases they were drawn from, wait: they are tried again while this serves.
            _logger.error("charges_left_unbooked_at_start %s", error)

    async def _sweep_responses(self) -> None:
        await self._responses.sweep(self._settings.background_poll_s)
        days = self._settings.response_retention_days
        await self._response_store.delete_before(int((time.time() - days * 86400) * 1000))

    def _use(self, catalogue: Catalogue) -> None:
        """Put a new catalogue in place; requests under way keep theirs."""
        self._admission.catalogue = catalogue

    async def _load_providers(self) -> None:
        request = provider_service_pb2.GetCapabilitiesRequest()
        answer = await self._providers.get_capabilities(request, Call.internal(PEER_TIMEOUT_S))
        self._registry.take_providers(
            Provider(
                each.provider,
                each.adapter,
                frozenset(each.features),
                each.synthetic,
                self._own_services.get(each.provider, ""),
            )
            for each in answer.providers
        )


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
    own_services: Mapping[str, str] | None = None,
) -> Service:
    """Build the router. `vendors` names the price list of each configured provider.

    `own_services` names the vendor of each provider that is a vendor's own service: the registry's models
    of that vendor are answered there. Raises ValueError for models that do not fit together.
    """
    app = RouterApp(settings, routes, vendors, own_services or {}, infrastructure)
    return Service(
        name="router",
        interfaces=[
            (RouterService, app.server),
            (RoutingPolicyService, app.policy_server),
            (RegistryService, app.registry_server),
            (ProviderHealthService, app.health_server),
            (ResponseService, app.response_server),
            (MediaRouterService, app.media),
        ],
        start=app.start,
        stop=app.stop,
        check=app.check,
    )
