"""Streamed speech with real providers, router, journal and billing: what it cost is in the books, once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from omnihub.billing.v1 import budget_service_pb2 as budget
from omnihub.billing.v1 import report_service_pb2 as report
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_pb2 import LimitTerms
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.billing.v1.report_service_api import ReportService
from omnihub.common.v1.media_pb2 import SpeechInput
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.router.v1 import media_router_service_pb2 as pb
from omnihub.router.v1.media_router_service_api import MediaRouterService

from services.billing.settings import BillingSettings, MarginSettings, PlanSettings
from services.billing.store.budget_tables import budget_counter
from services.billing.store.checks import check_ledger
from services.common.rpc import Call, Connector, Registry, RpcError
from services.common.service import Infrastructure
from services.providers import app as providers
from services.providers.settings import ProviderSettings
from services.router import app as router
from services.router.settings import RouterSettings, RouteSettings
from tests.support.billing import (
    ORGANISATION,
    Directory,
    assert_books_balance,
    billing_connector,
    call_of,
    open_store,
    wallet,
)
from tests.support.fault_server import Disconnect, Endless, FaultServer, Head, Send, running_fault_server

TEXT = "x" * 1000
# At 0.10 for 1,000 characters, and 100 credits.
COST, CREDITS = 100_000_000, 100_000_000_000


@asynccontextmanager
async def speaking(
    server: FaultServer,
    folder: Path,
    database_url: str,
    prices: BillingSettings | None = None,
    limit: LimitTerms | None = None,
) -> AsyncIterator[Any]:
    """Run providers, router and billing, with a limit; yield a client of the router. Settled at the end."""
    registry = Registry()
    infrastructure = Infrastructure(connector=Connector(registry, {}), data_dir=folder, instance_id="test")
    settings = {
        "eleven": ProviderSettings(adapter="elevenlabs", base_url=server.url, vendor="elevenlabs"),
        "wall": ProviderSettings(adapter="openai", base_url=server.url),
    }
    routes = {"voice": RouteSettings(route=["wall/tts-unpriced", "eleven/eleven_v3"])}
    vendors = {"eleven": "elevenlabs", "wall": "wall"}
    async with AsyncExitStack() as stack:
        directory = Directory(ORGANISATION, bootstrap=ORGANISATION)
        books = await stack.enter_async_context(billing_connector(database_url, folder, directory, prices))
        for interface in (BillingService, BudgetService):
            registry.add(interface, books.connect(interface, "billing"))
        if limit is not None:
            limits = books.connect(BudgetService, "billing")
            await limits.set_limit(budget.SetLimitRequest(terms=limit), call_of())
        makers = providers.build(settings, infrastructure)
        for interface, implementation in makers.interfaces:
            registry.add(interface, implementation)
        assert {ProviderService, MediaProviderService} <= {each for each, _ in makers.interfaces}
        await makers.start()
        stack.push_async_callback(makers.stop)
        service = router.build(RouterSettings(), infrastructure, routes=routes, vendors=vendors)
        for interface, implementation in service.interfaces:
            registry.add(interface, implementation)
        await service.start()
        stack.push_async_callback(service.stop)
        yield infrastructure.connector.connect(MediaRouterService, "router")


def asked(client: Any, call: Call | None = None) -> Any:
    request = pb.StreamSpeechRequest(model="voice", speech=SpeechInput(text=TEXT, voice="v1"))
    return client.stream_speech(request, call or call_of())


@pytest.mark.matrix(row=50, adapter="elevenlabs")
async def test_speech_is_paid_once(tmp_path: Path, database_url: str) -> None:
    async with running_fault_server() as server:
        server.script = [Head(content_type="audio/mpeg"), Send(b"so"), Send(b"und")]
        async with speaking(server, tmp_path, database_url) as client:
            *_, last = [message async for message in asked(client)]
            assert (last.end.cost, last.end.model_used) == ("0.1", "eleven/eleven_v3")
    async with open_store(database_url) as store:
        assert await wallet(store) == (CREDITS - COST, 0, 0)
        await assert_books_balance(store)


async def test_its_margin_is_paid_and_rating_it_again_is_the_same(tmp_path: Path, database_url: str) -> None:
    margins = BillingSettings(margins=(MarginSettings(model="eleven/*", basis_points=2500),))
    async with running_fault_server() as server:
        server.script = [Head(content_type="audio/mpeg"), Send(b"sound")]
        async with speaking(server, tmp_path, database_url, margins) as client:
            *_, last = [message async for message in asked(client)]
            assert last.end.cost == "0.125"
    directory = Directory(ORGANISATION)
    async with billing_connector(database_url, tmp_path, directory, margins) as books:
        reports = books.connect(ReportService, "billing")
        answer = await reports.rerate_usage(report.RerateUsageRequest(), call_of())
        assert (answer.checked, answer.reproduced, list(answer.differences)) == (1, 1, [])
        (event,) = (await reports.list_usage_events(report.ListUsageEventsRequest(), call_of())).events
        assert (event.amount, event.cost, event.characters) == ("0.125", "0.1", len(TEXT))


async def test_cut_speech_costs_nothing(tmp_path: Path, database_url: str) -> None:
    async with running_fault_server() as server:
        server.script = [Head(content_type="audio/mpeg"), Send(b"so"), Disconnect()]
        async with speaking(server, tmp_path, database_url) as client:
            with pytest.raises(RpcError) as caught:
                [message async for message in asked(client)]
            assert caught.value.reason == "STREAM_TRUNCATED"
            assert server.injected["disconnect"] == 1
    async with open_store(database_url) as store:
        assert await wallet(store) == (CREDITS, 0, 0)


@pytest.mark.matrix(row=40, adapter="elevenlabs")
async def test_who_leaves_pays_and_the_provider_is_left(tmp_path: Path, database_url: str) -> None:
    async with running_fault_server() as server:
        server.script = [Head(content_type="audio/mpeg"), Endless(b"sound", 0.01)]
        async with speaking(server, tmp_path, database_url) as client:
            stream = asked(client)
            async for message in stream:
                if message.audio:
                    break
            await stream.aclose()
            await server.hung_up.wait()
    async with open_store(database_url) as store:
        assert await wallet(store) == (CREDITS - COST, 0, 0)


@pytest.mark.parametrize(
    ("measure", "window", "amount", "reason"),
    [
        ("requests", "total", "1", "BUDGET_LIMIT"),
        ("credits", "total", "0.15", "BUDGET_LIMIT"),
        ("credits", "total", "0.05", "ESTIMATE_EXCEEDS_BUDGET"),
    ],
)
async def test_a_limit_is_asked_before_anybody_speaks(
    tmp_path: Path, measure: str, window: str, amount: str, reason: str
) -> None:
    database_url = f"sqlite:///{tmp_path / 'billing.db'}"
    allowed = 0 if reason == "ESTIMATE_EXCEEDS_BUDGET" else 1
    limit = LimitTerms(scope="project", scope_id="proj_1", measure=measure, window=window, amount=amount)
    call = call_of()
    call = replace(call, identity=replace(call.identity, project_id="proj_1"))
    async with running_fault_server() as server:
        server.script = [Head(content_type="audio/mpeg"), Send(b"sound")]
        async with speaking(server, tmp_path, database_url, limit=limit) as client:
            for _ in range(allowed):
                [message async for message in asked(client, call)]
            with pytest.raises(RpcError) as caught:
                [message async for message in asked(client, call)]
            assert (caught.value.reason, caught.value.metadata["scope_id"]) == (reason, "proj_1")
            assert len(server.requests) == allowed
            # Whoever is not of the project is not refused.
            [message async for message in asked(client)]
    async with open_store(database_url) as store:
        assert await wallet(store) == (CREDITS - (allowed + 1) * COST, 0, 0)
        async with store.database.reading() as connection:
            query = sa.select(sa.func.sum(budget_counter.c.spent), sa.func.sum(budget_counter.c.leased))
            spent, leased = (await connection.execute(query)).one()
        assert (spent or 0, leased or 0) == (allowed * (COST if measure == "credits" else 1), 0)
        assert check_ledger(store.database).ok


async def test_one_at_a_time(tmp_path: Path) -> None:
    limit = LimitTerms(measure="concurrency", amount="1")
    async with running_fault_server() as server:
        server.script = [Head(content_type="audio/mpeg"), Endless(b"sound", 0.01)]
        async with speaking(server, tmp_path, "", limit=limit) as client:
            first = asked(client)
            await anext(first)
            with pytest.raises(RpcError) as caught:
                [message async for message in asked(client)]
            assert (caught.value.reason, len(server.requests)) == ("RATE_LIMITED", 1)
            await first.aclose()
            await server.hung_up.wait()


async def test_a_plan_without_the_model_speaks_nothing(tmp_path: Path) -> None:
    plan = {"small": PlanSettings(allowed_models=("wall/*",))}
    async with running_fault_server() as server:
        server.script = [Head(content_type="audio/mpeg"), Send(b"sound")]
        settings = BillingSettings(plans=plan, default_plan="small")
        async with speaking(server, tmp_path, "", settings) as client:
            with pytest.raises(RpcError, match="the plan 'small' does not include") as caught:
                [message async for message in asked(client)]
            assert (caught.value.reason, server.requests) == ("MODEL_NOT_ALLOWED", [])
