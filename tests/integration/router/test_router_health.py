"""Replicas over one database: what one learns of a provider makes the others careful, and history adds up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.common.v1.chat_pb2 import Finish
from omnihub.provider.v1.media_provider_service_api import MediaProviderService
from omnihub.provider.v1.provider_service_api import ProviderService
from omnihub.provider.v1.stored_response_service_api import StoredResponseService
from omnihub.router.v1 import provider_health_service_pb2 as pb
from omnihub.router.v1 import router_service_pb2 as router_pb
from omnihub.router.v1.cached_answer_pb2 import CachedAnswer
from omnihub.router.v1.provider_health_service_api import ProviderHealthService
from omnihub.router.v1.router_service_api import RouterService

from services.common.db import Database
from services.common.ids import new_id
from services.common.rpc import Connector, Registry, RpcError
from services.common.service import Infrastructure
from services.router import app
from services.router.cache.answer_store import KeptAnswers
from services.router.domain.catalogue import Target
from services.router.domain.sketch import Tally
from services.router.health.health import Health
from services.router.health.sharing import HealthSharing
from services.router.health.store import NAME_LIMIT, HealthStore, Minute, Opening
from services.router.settings import BreakerSettings, RouterSettings, RouteSettings
from tests.support.fakes import Fake, FakeBilling, FakeBudgets, FakeProviders
from tests.support.router import a_call, a_chat, an_answer, bounded, chat_request, failed, until

TARGET = Target("a", "x")


class Replica:
    """A whole router, and its clients."""

    def __init__(self, connector: Connector, providers: FakeProviders) -> None:
        self.providers = providers
        self.chat: Any = connector.connect(RouterService, "router")
        self.health: Any = connector.connect(ProviderHealthService, "router")

    async def ask(self) -> Any:
        return await self.chat.chat(chat_request(), a_call())

    async def breaker(self) -> str:
        answer = await self.health.get_provider_health(pb.GetProviderHealthRequest(), a_call())
        return next((each.breaker for each in answer.targets if each.target == "a/x"), "unknown")

    async def until_breaker(self, state: str) -> None:
        for _ in range(250):
            if await self.breaker() == state:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"never {state}: {await self.breaker()}")


@asynccontextmanager
async def running(database_url: str, folder: Path, **settings: Any) -> AsyncIterator[Replica]:
    billing, providers = FakeBilling(), FakeProviders("a", "local")
    billing.price("a/x", 1_000_000, 2_000_000)
    registry = Registry()
    registry.add(BillingService, billing)
    registry.add(ProviderService, providers)
    registry.add(BudgetService, FakeBudgets())
    registry.add(StoredResponseService, Fake())
    registry.add(MediaProviderService, Fake())
    connector = Connector(registry, {})
    infrastructure = Infrastructure(
        connector=connector, data_dir=folder, database_url=database_url, instance_id=new_id("proc")
    )
    made = RouterSettings.model_validate(
        {
            "settle_interval_s": 60,
            "health": {"share_interval_s": 0.05},
            "breaker": {"failures": 2},
            **settings,
        }
    )
    routes = {"m": RouteSettings(route=["a/x"], retries=0)}
    service = app.build(made, infrastructure, routes=routes, vendors={})
    for interface, implementation in service.interfaces:
        registry.add(interface, implementation)
    await service.start()
    try:
        yield Replica(connector, providers)
    finally:
        await service.stop()


async def test_a_circuit_that_opens_makes_the_other_replica_probe(database_url: str, tmp_path: Path) -> None:
    async with bounded(30), running(database_url, tmp_path) as one, running(database_url, tmp_path) as other:
        one.providers.answers["a/x"] = [failed(), failed()]
        for _ in range(2):
            with pytest.raises(RpcError, match="PROVIDER_FAILED"):
                await one.ask()
        assert await one.breaker() == "open"
        await other.until_breaker("half_open")
        gate = asyncio.Event()

        async def probed(_: Any, __: Any) -> Any:
            await gate.wait()
            return an_answer()

        # One probe at a time: while it runs, the circuit pauses for everybody else.
        other.providers.answers["a/x"] = [probed]
        probe = asyncio.create_task(other.ask())
        await until(lambda: other.providers.asked)
        answer = await other.health.get_provider_health(pb.GetProviderHealthRequest(), a_call())
        (seen,) = answer.targets
        assert (seen.breaker, seen.breaker_reason, seen.opened_elsewhere) == (
            "half_open",
            "another replica",
            1,
        )
        assert seen.pause_ms > 0
        gate.set()
        await probe
        assert await other.breaker() == "closed"


async def test_the_same_opening_makes_nobody_careful_twice(database_url: str) -> None:
    async with migrated(database_url) as database:
        store = HealthStore(database)
        health = Health(BreakerSettings())
        sharing = HealthSharing(health, store, "one", 1, 1)
        now_ms = int(time.time() * 1000)
        await store.write([], [Opening("a/x", "two", now_ms, "PROVIDER_FAILED")])
        await store.write([], [Opening("a/y", "one", now_ms, "PROVIDER_FAILED")])
        await sharing.read()
        assert health.state(TARGET)[0] == "half_open"
        assert health.state(Target("a", "y"))[0] == "closed", "its own openings are no news"
        health.succeeded(TARGET, time.monotonic())
        await sharing.read()
        assert health.state(TARGET)[0] == "closed"
        await store.write([], [Opening("a/x", "two", now_ms + 1, "PROVIDER_FAILED")])
        await sharing.read()
        assert health.state(TARGET)[0] == "half_open"


@pytest.mark.parametrize("error", [KeyError("unforeseen"), OSError("the database is away")])
async def test_health_is_shared_again_after_any_failure(error: Exception) -> None:
    failures, read = [error], asyncio.Event()

    class Store:
        async def openings(self, since_ms: int) -> list[Opening]:
            if failures:
                raise failures.pop()
            read.set()
            return []

        async def write(self, minutes: Any, openings: Any) -> None: ...

        async def delete_before(self, minute: int, at_ms: int) -> None: ...

    sharing = HealthSharing(Health(BreakerSettings()), Store(), "one", 0.001, 1)  # type: ignore[arg-type]
    sharing.start()
    async with bounded():
        await read.wait()
    await sharing.stop()


async def test_a_name_that_cannot_be_stored_keeps_no_other_from_it(database_url: str) -> None:
    """Callers can name any model of a provider."""
    async with migrated(database_url) as database:
        store = HealthStore(database)
        names = ("x\0", "x" * NAME_LIMIT, "x")
        minutes = [Minute(1, Target("a", name), "one", Tally(attempts=1)) for name in names]
        await store.write(minutes, [Opening(f"a/{name}", "one", 1, "PROVIDER_FAILED") for name in names])
        assert [each.target.model for each in await store.minutes(0)] == ["x"]
        assert [each.name for each in await store.openings(0)] == ["a/x"]


async def test_a_refused_credential_is_shared_too(database_url: str, tmp_path: Path) -> None:
    async with bounded(30), running(database_url, tmp_path) as one, running(database_url, tmp_path) as other:
        other.providers.answers["a/x"] = [an_answer()]
        await other.ask()
        one.providers.answers["a/x"] = [failed("PROVIDER_BILLING")]
        with pytest.raises(RpcError, match="PROVIDER_BILLING"):
            await one.ask()
        await other.until_breaker("half_open")


async def test_both_replicas_are_in_the_numbers(database_url: str, tmp_path: Path) -> None:
    async with bounded(30), running(database_url, tmp_path) as one, running(database_url, tmp_path) as other:
        one.providers.answers["a/x"] = [an_answer(), an_answer(), failed()]
        other.providers.answers["a/x"] = [an_answer()]
        await one.ask()
        await one.ask()
        with pytest.raises(RpcError):
            await one.ask()
        await other.ask()
        # Each writes what it has; asking the other makes it write at once.
        await other.breaker()
        answer = await one.health.get_provider_health(pb.GetProviderHealthRequest(), a_call())
        (seen,) = answer.targets
        assert (answer.replicas, seen.metrics.attempts, seen.metrics.failures) == (2, 4, 1)
        assert (seen.metrics.success_rate, seen.breaker) == (0.75, "closed")
        assert seen.metrics.latency_ms.p50 >= 1
        listed = await one.health.list_provider_metrics(pb.ListProviderMetricsRequest(), a_call())
        assert sum(each.metrics.attempts for each in listed.minutes) == 4
        none = await one.health.get_provider_health(pb.GetProviderHealthRequest(provider="b"), a_call())
        assert not none.targets
        token = pb.ListProviderMetricsRequest(page_token="nonsense")
        with pytest.raises(RpcError, match="INVALID_ARGUMENT"):
            await one.health.list_provider_metrics(token, a_call())


@asynccontextmanager
async def migrated(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, "router")
    await database.migrate(app.MIGRATIONS)
    try:
        yield database
    finally:
        await database.close()


async def test_history_comes_in_pages_and_is_forgotten(database_url: str) -> None:
    async with migrated(database_url) as database:
        store = HealthStore(database)
        minutes = []
        for minute in range(100, 105):
            for instance in ("one", "two"):
                for model in ("x", "y"):
                    tally = Tally(attempts=1, successes=1)
                    tally.latency.add(minute)
                    minutes.append(Minute(minute, Target("a", model), instance, tally))
        await store.write(minutes, [Opening("a/x", "one", 5, "PROVIDER_FAILED")])
        # Written again, it replaces what was known.
        await store.write(minutes, [Opening("a/x", "one", 9, "PROVIDER_FAILED")])
        assert [each.opened_at_ms for each in await store.openings(9)] == [9]
        seen: list[Minute] = []
        after = None
        while page := await store.history(3, after=after):
            assert len(page) <= 3
            seen += page
            after = page[-1].minute, page[-1].target.name
        assert [(each.minute, each.target.model) for each in seen] == [
            (minute, model) for minute in range(104, 99, -1) for model in ("x", "y")
        ]
        assert all(each.tally.attempts == 2 for each in seen)
        within = await store.history(100, target="a/y", first=101, before=103)
        assert [each.minute for each in within] == [102, 101]
        await store.delete_before(104, 10)
        assert {each.minute for each in await store.minutes(0)} == {104}
        assert not await store.openings(0)


def kept(text: str, expires_in_s: float = 60) -> CachedAnswer:
    answer = CachedAnswer(organisation_id="org_1", expires_at=time.time() + expires_in_s)
    answer.finish.CopyFrom(Finish(reason="stop"))
    answer.message.content = text
    return answer


async def test_kept_answers_are_bounded(database_url: str) -> None:
    async with migrated(database_url) as database:
        store = KeptAnswers(database, total_bytes=2500)
        store.start()
        for key in ("a", "b"):
            store.keep(key, kept(key * 1000))
        store.keep("old", kept("x", -1))
        await store.stop()
        assert await store.find("old", time.time()) is None
        found = await store.find("a", time.time())
        assert found is not None
        assert found.message.content == "a" * 1000
        store.keep("c", kept("c" * 1000))
        await store._write_waiting([])
        await store.trim(time.time())
        async with database.reading() as connection:
            left = (await connection.execute(sa.text("SELECT count(*) FROM " + table(database)))).scalar()
        assert left == 2


def table(database: Database) -> str:
    return "kept_answers" if database.sqlite else f'"{database.schema}".kept_answers'


async def test_a_kept_answer_outlives_the_process(database_url: str, tmp_path: Path) -> None:
    message = router_pb.ChatRequest(chat=a_chat(), options=router_pb.CallOptions(cache="on"))
    async with bounded(30):
        async with running(database_url, tmp_path, cache={"persist": True}) as one:
            one.providers.answers["a/x"] = [an_answer("once")]
            assert (await one.chat.chat(message, a_call())).outcome.cache == "miss"
        async with running(database_url, tmp_path, cache={"persist": True}) as other:
            answer = await other.chat.chat(message, a_call())
            assert (answer.output, answer.outcome.cache, answer.cost) == ("once", "hit", "0")
            assert not other.providers.asked


async def test_a_database_that_fails_stops_no_request(database_url: str, tmp_path: Path) -> None:
    message = router_pb.ChatRequest(chat=a_chat(), options=router_pb.CallOptions(cache="on"))
    async with bounded(30), running(database_url, tmp_path, cache={"persist": True}) as one:
        async with migrated(database_url) as database, database.transaction() as connection:
            await connection.execute(sa.text("DROP TABLE " + table(database)))
        one.providers.answers["a/x"] = [an_answer("anyway")]
        assert (await one.chat.chat(message, a_call())).output == "anyway"
        assert (await one.chat.chat(message, a_call())).outcome.cache == "hit"
