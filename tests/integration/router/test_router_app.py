"""The whole router over both databases, with peers in memory: what a start finds and what a stop leaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.common.v1.change_pb2 import Change
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.provider.v1.stored_response_service_api import StoredResponseService
from omnihub.router.v1 import router_service_pb2 as pb
from omnihub.router.v1.router_service_api import RouterService

from services.common.ids import new_id
from services.common.rpc import Connector, Registry, RpcError
from services.common.service import Infrastructure
from services.router import app
from services.router.settings import RouterSettings, RouteSettings
from tests.support.fakes import Fake, FakeBilling, FakeBudgets, FakeProviders
from tests.support.router import IDENTITY, a_call, an_answer, bounded, chat_request

COST = 20_000


class Peers:
    def __init__(self) -> None:
        self.billing = FakeBilling()
        self.billing.price("a/x", 1_000_000, 2_000_000)
        self.providers = FakeProviders("a", "local")


@asynccontextmanager
async def running(peers: Peers, database_url: str, folder: Path) -> AsyncIterator[Any]:
    registry = Registry()
    registry.add(BillingService, peers.billing)
    registry.add(BudgetService, FakeBudgets())
    registry.add(ProviderService, peers.providers)
    registry.add(StoredResponseService, Fake())
    registry.add(MediaProviderService, Fake())
    connector = Connector(registry, {})
    infrastructure = Infrastructure(
        connector=connector, data_dir=folder, database_url=database_url, instance_id=new_id("proc")
    )
    settings = RouterSettings(settle_interval_s=60)
    service = app.build(settings, infrastructure, routes={"m": RouteSettings(route=["a/x"])}, vendors={})
    for interface, implementation in service.interfaces:
        registry.add(interface, implementation)
    try:
        await service.start()
        await service.check()
        yield connector.connect(RouterService, "router")
    finally:
        await service.stop()


async def test_a_request_from_start_to_stop(database_url: str, tmp_path: Path) -> None:
    peers = Peers()
    peers.providers.answers["a/x"] = [an_answer()]
    before = peers.billing.available
    async with bounded(10), running(peers, database_url, tmp_path) as router:
        answer = await router.chat(chat_request(), a_call())
        wanted = pb.GetDecisionRequest(decision_id=answer.outcome.decision_id)
        found = await router.get_decision(wanted, a_call())
        assert (found.decision.model_used, found.decision.cost) == ("a/x", "0.00002")
        assert found.decision.candidates[0].target == "a/x"
        stranger = replace(IDENTITY, organisation_id="org_2")
        with pytest.raises(RpcError, match="NOT_FOUND"):
            await router.get_decision(wanted, a_call(stranger))
        listed = await router.list_models(pb.ListModelsRequest(), a_call())
        assert [model.model_id for model in listed.models] == ["local/echo", "m"]
    assert [charge.amount_nano_credits for charge in peers.billing.charges.values()] == [COST]
    assert peers.billing.leases == peers.billing.holds == {}
    assert peers.billing.available == before - COST


async def test_what_a_crash_left_is_booked_before_the_first_request(
    database_url: str, tmp_path: Path
) -> None:
    peers = Peers()
    peers.providers.answers["a/x"] = [an_answer()]
    async with bounded(10):
        async with running(peers, database_url, tmp_path) as router:
            await router.chat(chat_request(), a_call())
            # Billing is gone until this process is, too: all that stays is the journal.
            peers.billing.refusals["settle"] = [RpcError("UNAVAILABLE", "gone")]
        assert peers.billing.charges == {}
        [stranded] = peers.billing.leases
        async with running(peers, database_url, tmp_path):
            assert [charge.amount_nano_credits for charge in peers.billing.charges.values()] == [COST]
            assert peers.billing.leases[stranded] > 0


async def test_a_charge_that_billing_fails_at_keeps_nothing_from_starting_and_stopping(
    database_url: str, tmp_path: Path
) -> None:
    peers = Peers()
    peers.providers.answers["a/x"] = [an_answer() for _ in range(3)]
    other = a_call(replace(IDENTITY, organisation_id="org_2"))
    async with bounded(10):
        async with running(peers, database_url, tmp_path) as router:
            answer = await router.chat(chat_request(), a_call())
            wanted = pb.GetDecisionRequest(decision_id=answer.outcome.decision_id)
            found = await router.get_decision(wanted, a_call())
            peers.billing.breaking.add(found.decision.attempts[-1].attempt_id)
            await router.chat(chat_request(), other)
            [broken, good] = peers.billing.leases
        assert list(peers.billing.closed) == [good]
        async with running(peers, database_url, tmp_path) as router:
            await router.chat(chat_request(), other)
        assert list(peers.billing.leases) == [broken]
        assert len(peers.billing.charges) == 2


async def test_a_start_waits_for_its_peers(database_url: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(app, "PEER_RETRY_S", 0.01)
    peers = Peers()
    capabilities, tries = peers.providers.get_capabilities, 0

    async def starting(request: Any, call: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RpcError("UNAVAILABLE", "starting")
        return await capabilities(request, call)

    peers.providers.get_capabilities = starting  # type: ignore[method-assign]
    async with bounded(10), running(peers, database_url, tmp_path):
        assert tries == 3


async def test_changed_prices_are_asked_for_again(database_url: str, tmp_path: Path) -> None:
    peers = Peers()
    peers.providers.answers["a/x"] = [an_answer(), an_answer()]
    async with bounded(10), running(peers, database_url, tmp_path) as router:
        assert (await router.chat(chat_request(), a_call())).cost == "0.00002"
        peers.billing.price("a/x", 2_000_000, 4_000_000)
        peers.billing.changes.put_nowait([Change(seq=1, topic="price", key="a/x")])
        # The follower takes the second change only after it has acted on the first.
        peers.billing.changes.put_nowait([])
        while not peers.billing.changes.empty():
            await router.list_models(pb.ListModelsRequest(), a_call())
        await router.list_models(pb.ListModelsRequest(), a_call())
        assert (await router.chat(chat_request(), a_call())).cost == "0.00004"
