"""Gateway, router and providers in one process: everything of the chat path but the edge."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from omnihub.billing.v1.report_service_api import ReportService
from omnihub.provider.v1 import provider_service_pb2 as provider
from omnihub.provider.v1.provider_service_api import ProviderService
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
from services.providers.settings import ProviderSettings
from services.router.settings import RouteSettings
from tests.support.fakes import Fake, FakeAuthenticator, FakeBilling
from tests.support.ports import free_port
from tests.support.providers import running_providers
from tests.support.router import INPUT_NANO, OUTPUT_NANO, Router

KEY = "omni_sk_test"


class Stack:
    """A running chat path, and what a test looks at."""

    def __init__(self, router: Router, port: int) -> None:
        self.router = router
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.AsyncClient(
            base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=20, limits=httpx.Limits()
        )


class Connected:
    """Real providers where a router of the tests expects its fakes."""

    def __init__(self, client: ProviderService, capabilities: Any) -> None:
        self._client = client
        self.capabilities = capabilities

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@asynccontextmanager
async def running_stack(
    folder: Path,
    providers: Mapping[str, ProviderSettings],
    routes: Mapping[str, RouteSettings],
    **settings: Any,
) -> AsyncIterator[Stack]:
    """Run the chat path with these providers and routes; all targets cost what tests.support.router says."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(running_providers(**providers))
        answer = await client.get_capabilities(provider.GetCapabilitiesRequest(), Call.internal(5))
        billing = FakeBilling()
        for route in routes.values():
            for target in route.route:
                billing.price(target, INPUT_NANO * 1000, OUTPUT_NANO * 1000)
        connected: Any = Connected(client, answer.providers)
        router = Router(routes, connected, billing, **settings)
        registry = Registry()
        registry.add(RouterService, router.client)
        registry.add(ReportService, Fake())
        registry.add(ResponseService, Fake())
        registry.add(JobService, Fake())
        registry.add(MediaRouterService, Fake())
        registry.add(ConsentService, Fake())
        registry.add(FileContentService, Fake())
        identity = Identity(organisation_id="org_1", key_id="key_1", scopes=frozenset({"chat"}))
        authenticator: Any = FakeAuthenticator(**{KEY: identity})
        infrastructure = Infrastructure(
            connector=Connector(registry, {}), data_dir=folder, authenticator=authenticator
        )
        service = gateway.build(GatewaySettings(), infrastructure)

        async def no_problems() -> dict[str, str]:
            return {}

        port = free_port()
        listener = HttpListener(f"127.0.0.1:{port}", service.routes, no_problems, 1)
        await listener.start()
        stack.push_async_callback(listener.stop)
        running = Stack(router, port)
        await stack.enter_async_context(running.http)
        yield running
