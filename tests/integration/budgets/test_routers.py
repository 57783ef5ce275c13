"""Whole routers over one billing: a budget holds for any number of them, and a change reaches them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from omnihub.auth.v1.auth_service_api import AuthService
from omnihub.billing.v1 import billing_service_pb2
from omnihub.billing.v1 import budget_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_pb2 import LimitTerms
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.provider.v1.stored_response_service_api import StoredResponseService
from omnihub.router.v1 import router_service_pb2
from omnihub.router.v1.router_service_api import RouterService

from services.billing.app import build as build_billing
from services.billing.settings import BillingSettings, PriceSettings
from services.common.ids import new_id
from services.common.rpc import Connector, Identity, Registry, RpcError
from services.common.service import Infrastructure
from services.router.app import build as build_router
from services.router.settings import RouterSettings, RouteSettings
from tests.support.billing import Directory
from tests.support.budgets import admin, outcomes
from tests.support.fakes import Fake, FakeProviders, events
from tests.support.router import (
    a_call,
    a_chat,
    a_usage,
    an_answer,
    chat_request,
    delta,
    end,
    start,
    stream_request,
)

ORGANISATION = "org_1"
CALLER = Identity(organisation_id=ORGANISATION, key_id="key_1", scopes=frozenset({"chat"}))


class Platform:
    """Billing and routers, and clients of them."""

    def __init__(self, registry: Registry, url: str, folder: Path) -> None:
        self.registry = registry
        self.connector = Connector(registry, {})
        self.url = "" if url.startswith("sqlite") else url
        self.folder = folder
        self.routers: list[Any] = []
        self.providers = FakeProviders("a", "local")

    def infrastructure(self, folder: str) -> Infrastructure:
        return Infrastructure(
            connector=self.connector,
            data_dir=self.folder / folder,
            database_url=self.url,
            instance_id=new_id("proc"),
        )

    @property
    def budgets(self) -> Any:
        return self.connector.connect(BudgetService, "billing")

    async def limit(self, *terms: str) -> None:
        measure, window, amount = terms
        request = pb.SetLimitRequest(terms=LimitTerms(measure=measure, window=window, amount=amount))
        await self.budgets.set_limit(request, admin(ORGANISATION))

    async def heard(self, rules: bool = True) -> None:
        """Wait until every router knows of limits, as long as the contract allows."""
        for _ in range(100):
            if all(self._has_rules(each) == rules for each in self.routers):
                return
            await asyncio.sleep(0.05)
        raise AssertionError("not heard within 5 s")

    @staticmethod
    def _has_rules(router: Any) -> bool:
        known = router._admission.budget_of(CALLER)
        return known is not None and bool(known.by_subject)

    async def settled(self) -> Any:
        for router in self.routers:
            await router._admission.drain()
            await router._settlement.settle_own()
        return await self.budgets.list_limits(pb.ListLimitsRequest(), admin(ORGANISATION))


@asynccontextmanager
async def running(
    url: str, folder: Path, routers: int, credits: int = 1000, *, leases: bool = True
) -> AsyncIterator[Platform]:
    registry = Registry()
    registry.add(AuthService, Directory(ORGANISATION, bootstrap=ORGANISATION))
    platform = Platform(registry, url, folder)
    registry.add(ProviderService, platform.providers)
    registry.add(StoredResponseService, Fake())
    registry.add(MediaProviderService, Fake())
    price = PriceSettings(per_request=Decimal("0.1"))
    async with AsyncExitStack() as stack:
        billing = build_billing(
            BillingSettings(),
            platform.infrastructure("billing"),
            bootstrap_credits=Decimal(credits),
            configured_prices={"m": price, "pair": price, "free": PriceSettings(per_request=Decimal(0))},
        )
        for interface, implementation in billing.interfaces:
            registry.add(interface, implementation)
        stack.push_async_callback(billing.stop)
        (folder / "billing").mkdir()
        await billing.start()
        for number in range(routers):
            (folder / f"router{number}").mkdir()
            service = build_router(
                RouterSettings(settle_interval_s=60, leases=leases),
                platform.infrastructure(f"router{number}"),
                routes={
                    "m": RouteSettings(route=["a/x"], retries=0),
                    "free": RouteSettings(route=["a/free"], retries=0),
                    "pair": RouteSettings(route=["a/x", "a/y"], retries=0),
                },
                vendors={},
            )
            await service.start()
            stack.push_async_callback(service.stop)
            platform.routers.append(service.start.__self__)  # type: ignore[attr-defined]
        yield platform


def client_of(router: Any) -> Any:
    registry = Registry()
    registry.add(RouterService, router.server)
    return Connector(registry, {}).connect(RouterService, "router")


async def at_once(platform: Platform, streamed: bool, count: int = 1000) -> list[Any]:
    """Ask so many times at once, all routers alike; return the errors, None for each answer."""
    clients = [client_of(router) for router in platform.routers]
    platform.providers.answers["a/x"] = [an_answer(usage=a_usage()) for _ in range(count)]
    platform.providers.streams["a/x"] = [events(start(), delta("hi"), end()) for _ in range(count)]

    async def ask(number: int) -> None:
        client = clients[number % len(clients)]
        if streamed:
            async for _ in client.stream_chat(stream_request(max_tokens=5), a_call(CALLER)):
                pass
        else:
            await client.chat(chat_request(max_tokens=5), a_call(CALLER))

    return await outcomes([ask(number) for number in range(count)])


@pytest.mark.parametrize(("routers", "streamed"), [(1, False), (3, True)])
async def test_a_hold_for_each_request_admits_exactly_fifty(
    tmp_path: Path, routers: int, streamed: bool
) -> None:
    """Credits instead of a limit. A thousand, through the edge: tests/chaos/test_exact_admission.py."""
    async with running("", tmp_path, routers, credits=5, leases=False) as platform:
        done = await at_once(platform, streamed, 120)
        assert done.count(None) == len(platform.providers.asked) == 50
        reasons = {each.reason for each in done if each is not None}
        assert reasons <= {"INSUFFICIENT_CREDITS", "IN_FLIGHT_BUDGET_EXHAUSTED"}
        await platform.settled()
        billing = platform.connector.connect(BillingService, "billing")
        balance = await billing.get_balance(billing_service_pb2.GetBalanceRequest(), admin(ORGANISATION))
        assert (balance.balance, balance.held) == ("0", "0")


@pytest.mark.parametrize("routers", [1, 3])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_thousand_requests_at_once(
    database_url: str, tmp_path: Path, routers: int, streamed: bool
) -> None:
    async with running(database_url, tmp_path, routers) as platform:
        await platform.limit("credits", "day", "5.00")
        await platform.heard()
        done = await at_once(platform, streamed)
        assert done.count(None) == 50
        assert all(isinstance(each, RpcError) for each in done if each is not None)
        assert len(platform.providers.asked) == 50
        (limit,) = (await platform.settled()).limits
        assert (limit.spent, limit.leased) == ("5", "0")
        balance = await platform.connector.connect(BillingService, "billing").get_balance(
            billing_service_pb2.GetBalanceRequest(), admin(ORGANISATION)
        )
        assert balance.balance == "995"


async def test_a_change_reaches_every_router(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path, 2) as platform:
        platform.providers.answers["a/x"] = [an_answer() for _ in range(10)]
        one, other = (client_of(router) for router in platform.routers)
        await one.chat(chat_request(max_tokens=5), a_call(CALLER))
        await platform.limit("requests", "lifetime", "0")
        await platform.heard()
        for client in (one, other):
            with pytest.raises(RpcError, match="ESTIMATE_EXCEEDS_BUDGET"):
                await client.chat(chat_request(max_tokens=5), a_call(CALLER))
        (limit,) = (await platform.settled()).limits
        assert limit.spent == "1"
        await platform.budgets.delete_limit(
            pb.DeleteLimitRequest(limit_id=limit.limit_id), admin(ORGANISATION)
        )
        await platform.heard(rules=False)
        await other.chat(chat_request(max_tokens=5), a_call(CALLER))


async def test_usage_by_project_and_run(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path, 1) as platform:
        platform.providers.answers["a/x"] = [an_answer()]
        caller = Identity(
            organisation_id=ORGANISATION, key_id="key_1", project_id="prj_1", workspace_id="ws_1"
        )
        client = client_of(platform.routers[0])
        await client.chat(chat_request(max_tokens=5, agent_id="agent_1", run_id="run_1"), a_call(caller))
        await platform.settled()
        billing = platform.connector.connect(BillingService, "billing")
        for group_by, group in (("project", "prj_1"), ("run", "run_1"), ("workspace", "ws_1")):
            request = billing_service_pb2.ListUsageRequest(group_by=group_by)
            (found,) = (await billing.list_usage(request, admin(ORGANISATION))).groups
            assert (found.group, found.cost) == (group, "0.1")


@pytest.mark.parametrize(("limit", "asked"), [("60", 1), ("4000", 2)])
async def test_who_runs_beside_others_fits_into_the_limit_of_tokens(
    database_url: str, tmp_path: Path, limit: str, asked: int
) -> None:
    async with running(database_url, tmp_path, 1) as platform:
        await platform.limit("tokens", "day", limit)
        await platform.heard()
        answer = an_answer(usage=a_usage(10, 5))
        platform.providers.answers["a/x"] = [answer]
        platform.providers.answers["a/y"] = [answer]
        request = chat_request(model="pair", max_tokens=5, parallel=True)
        await client_of(platform.routers[0]).chat(request, a_call(CALLER))
        assert len(platform.providers.asked) == asked
        await platform.settled()


async def test_a_comparison_that_a_budget_does_not_allow_does_not_begin(
    database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path, 1) as platform:
        await platform.limit("credits", "day", "0.1")
        await platform.heard()
        platform.providers.answers["a/x"] = [an_answer()]
        client = client_of(platform.routers[0])
        await client.chat(chat_request(max_tokens=5), a_call(CALLER))
        await platform.settled()
        request = router_service_pb2.CompareChatRequest(chat=a_chat("", max_tokens=5, models=["free", "m"]))
        with pytest.raises(RpcError, match="BUDGET_LIMIT"):
            async for _ in client.compare_chat(request, a_call(CALLER)):
                pass
        assert len(platform.providers.asked) == 1
        (limit,) = (await platform.settled()).limits
        assert limit.spent == "0.1"
