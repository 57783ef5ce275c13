"""Gateway, router and providers as they are, over a real HTTP server, with billing from memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from omnihub.billing.v1.report_service_api import ReportService
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.provider.v1.provider_service_pb2 import GetCapabilitiesRequest
from omnihub.router.v1.media_router_service_api import MediaRouterService
from omnihub.router.v1.response_service_api import ResponseService
from omnihub.router.v1.router_service_api import RouterService
from omnihub.workflow.v1.consent_service_api import ConsentService
from omnihub.workflow.v1.file_content_service_api import FileContentService
from omnihub.workflow.v1.job_service_api import JobService

from services.common.rpc import Call, Connector, Identity, Registry
from services.common.service import Infrastructure
from services.gateway import app as gateway
from services.gateway.settings import GatewaySettings
from services.listener import HttpListener
from services.providers import app as providers
from services.providers.settings import ProviderSettings
from services.router.settings import RouteSettings
from tests.support.fakes import Fake, FakeAuthenticator, FakeBilling
from tests.support.ports import free_port
from tests.support.router import Router

KEY = "omni_sk_test"
# pico-credits per token
INPUT_PRICE, OUTPUT_PRICE = 1_000_000, 2_000_000


class Stack:
    """A running stack. Models are named `provider/model`, or by a route."""

    def __init__(self, router: Router, port: int) -> None:
        self.router = router
        self.url = f"http://127.0.0.1:{port}"
        self.key = KEY


@asynccontextmanager
async def running_stack(
    folder: Path, configured: dict[str, ProviderSettings], models: Sequence[str], **routes: RouteSettings
) -> AsyncIterator[Stack]:
    """Serve these providers; `models` are the names `provider/model` that have a price."""
    registry = Registry()
    connector = Connector(registry, {})
    infrastructure = Infrastructure(connector=connector, data_dir=folder)
    service = providers.build(configured, infrastructure)
    implementation: Any = service.interfaces[0][1]
    registry.add(ProviderService, implementation)
    client = connector.connect(ProviderService, "providers")
    told = await client.get_capabilities(GetCapabilitiesRequest(), Call.internal(5))
    implementation.capabilities = told.providers
    billing = FakeBilling(10**12)
    for name in models:
        billing.price(name, INPUT_PRICE, OUTPUT_PRICE)
    router = Router(routes, implementation, billing)
    registry.add(RouterService, router.client)
    registry.add(ReportService, Fake())
    registry.add(ResponseService, Fake())
    registry.add(JobService, Fake())
    registry.add(MediaRouterService, Fake())
    registry.add(ConsentService, Fake())
    registry.add(FileContentService, Fake())
    identity = Identity(organisation_id="org_1", key_id="key_1", scopes=frozenset({"chat"}))
    infrastructure.authenticator = FakeAuthenticator(**{KEY: identity})  # type: ignore[assignment]
    facade = gateway.build(GatewaySettings(), infrastructure)
    port = free_port()

    async def no_problems() -> dict[str, str]:
        return {}

    listener = HttpListener(f"127.0.0.1:{port}", facade.routes, no_problems, 1)
    await service.start()
    await listener.start()
    try:
        yield Stack(router, port)
    finally:
        await listener.stop()
        await router.settle()
        await service.stop()
