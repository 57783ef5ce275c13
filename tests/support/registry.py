"""A router with its registry, over a real database, with peers in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.provider.v1.stored_response_service_api import StoredResponseService
from omnihub.router.v1 import registry_service_pb2 as pb
from omnihub.router.v1.registry_pb2 import ModelDefinition
from omnihub.router.v1.registry_service_api import RegistryService
from omnihub.router.v1.router_service_api import RouterService

from services.common.ids import new_id
from services.common.rpc import Call, Connector, Identity, Registry
from services.common.service import Infrastructure
from services.router import app
from services.router.settings import RouterSettings, RouteSettings
from tests.support.fakes import Fake, FakeBilling, FakeBudgets, FakeProviders
from tests.support.router import a_call

PLATFORM = Identity(organisation_id="org_1", key_id="key_root", scopes=frozenset({"platform", "chat"}))
FILE = {"from-file": RouteSettings(route=["a/file"], aliases=["file-alias"])}


@dataclass
class Running:
    """One router process."""

    registry: Any
    router: Any
    providers: FakeProviders

    async def create(self, name: str, *targets: str, **fields: Any) -> dict[str, Any]:
        """Create a model and return it as JSON has it."""
        request = pb.CreateModelRequest(model=definition(name, *targets, **fields))
        return as_json((await self.registry.create_model(request, admin())).model)

    async def get(self, name: str) -> dict[str, Any]:
        """Return a model as administrators see it."""
        request = pb.GetRegisteredModelRequest(name=name)
        return as_json((await self.registry.get_registered_model(request, admin())).model)

    async def revisions(self, name: str) -> list[dict[str, Any]]:
        """Return the history of a model, newest first."""
        answer = await self.registry.list_model_revisions(pb.ListModelRevisionsRequest(name=name), admin())
        return [as_json(each) for each in answer.revisions]


def admin() -> Call:
    """Return a call of an administrator of the platform."""
    return a_call(PLATFORM)


def definition(name: str, *targets: str, **fields: Any) -> ModelDefinition:
    """Return a definition; `fields` as JSON with the contract's names."""
    document = {"name": name, "endpoints": [{"target": target} for target in targets], **fields}
    return ParseDict(document, ModelDefinition())


def as_json(message: Any) -> dict[str, Any]:
    """Return a message as JSON with the contract's names."""
    document: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return document


@asynccontextmanager
async def running(
    database_url: str,
    folder: Path,
    *,
    routes: Mapping[str, RouteSettings] = FILE,
    own_services: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """Run a router with the providers a, b and local."""
    peers = Registry()
    billing, providers = FakeBilling(), FakeProviders("a", "b", "local")
    for target in ("a/x", "a/y", "a/file", "b/x", "b/y"):
        billing.price(target, 1_000_000, 2_000_000)
    peers.add(BillingService, billing)
    peers.add(ProviderService, providers)
    peers.add(BudgetService, FakeBudgets())
    peers.add(StoredResponseService, Fake())
    peers.add(MediaProviderService, Fake())
    peers.add(StoredResponseService, Fake())
    connector = Connector(peers, {})
    infrastructure = Infrastructure(
        connector=connector, data_dir=folder, database_url=database_url, instance_id=new_id("proc")
    )
    settings = {"settle_interval_s": 60, "seed_models": False, **settings}
    service = app.build(
        RouterSettings(**settings), infrastructure, routes=routes, vendors={}, own_services=own_services
    )
    for interface, implementation in service.interfaces:
        peers.add(interface, implementation)
    try:
        await service.start()
        yield Running(
            connector.connect(RegistryService, "router"),
            connector.connect(RouterService, "router"),
            providers,
        )
    finally:
        await service.stop()
