"""The running service: its start, what it does on its own, and what it survives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from omnihub.billing.v1 import billing_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.price_pb2 import Price, PriceKey

from services.billing.background import Repeating
from services.billing.domain.price import make_price
from services.billing.domain.price_book import PriceBook
from services.billing.prices import Prices
from services.billing.settings import BillingSettings
from services.billing.store.prices import PriceStore
from services.billing.store.tables import changes
from services.billing.sweeper import Sweeper
from services.common.change_feed import ChangeFeed
from services.common.clock import now
from services.common.service import StartupError
from tests.support.billing import (
    ORGANISATION,
    SECOND,
    Directory,
    assert_books_balance,
    call_of,
    charge,
    fund,
    open_store,
    running_billing,
    wallet,
)

FAST = BillingSettings(sweep_interval_s=0.02, free_credits=Decimal("1.5"))


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - asked from outside, as a caller would
            await asyncio.sleep(0.02)


async def balance(billing: BillingService, organisation_id: str) -> str:
    return (await billing.get_balance(pb.GetBalanceRequest(), call_of(organisation_id))).balance


async def test_every_organisation_has_its_account_when_the_start_ends(
    database_url: str, tmp_path: Path
) -> None:
    directory = Directory(*(f"org_{n}" for n in range(20)), bootstrap="org_3")
    for _ in range(2):
        # The second start finds everything done.
        async with running_billing(database_url, tmp_path, directory, FAST) as billing:
            assert await balance(billing, "org_3") == "100"
            assert await balance(billing, "org_19") == "1.5"
    async with open_store(database_url) as store:
        books = await assert_books_balance(store)
    assert books.posted("promo_expense") == -(100 * 10**9 + 19 * 1_500_000_000)


async def test_a_new_organisation_gets_its_account_soon_or_when_it_is_needed(
    database_url: str, tmp_path: Path
) -> None:
    directory = Directory("org_a")
    async with running_billing(database_url, tmp_path, directory, FAST) as billing:
        directory.add("org_new")

        async def welcomed() -> bool:
            return await balance(billing, "org_new") == "1.5"

        await eventually(welcomed)
        directory.add("org_newer")
        request = pb.GrantCreditsRequest(organisation_id="org_newer", amount=1, idempotency_key="k")
        assert (await billing.grant_credits(request, call_of())).balance == "2.5"


async def test_holds_expire_while_the_service_runs(database_url: str, tmp_path: Path) -> None:
    async with running_billing(
        database_url, tmp_path, Directory("org_a", bootstrap="org_a"), FAST
    ) as billing:
        request = pb.CreateHoldRequest(
            hold_id="h", organisation_id="org_a", amount_nano_credits=10**9, ttl_s=1
        )
        await billing.create_hold(request, call_of())

        async def released() -> bool:
            answer = await billing.get_balance(pb.GetBalanceRequest(), call_of())
            return answer.held == "0"

        assert not await released()
        await eventually(released)


async def test_the_start_waits_for_auth_and_says_so_in_the_end(tmp_path: Path) -> None:
    directory = Directory("org_a", bootstrap="org_a")
    directory.fails = True
    url = f"sqlite:///{tmp_path / 'billing.db'}"
    with pytest.raises(StartupError, match="OMNIHUB_PEERS__AUTH"):
        async with running_billing(url, tmp_path, directory, BillingSettings(auth_wait_s=0.1)):
            pass
    started = asyncio.ensure_future(_balance_after_start(url, tmp_path, directory))
    await asyncio.sleep(0)
    directory.fails = False
    assert await started == "100"


async def _balance_after_start(url: str, tmp_path: Path, directory: Directory) -> str:
    async with running_billing(url, tmp_path, directory) as billing:
        return await balance(billing, "org_a")


async def test_the_sweeper_ends_holds_and_abandoned_leases(database_url: str) -> None:
    async with open_store(database_url) as store:
        await fund(store, "1")
        await store.create_hold("h", ORGANISATION, 100, SECOND, 0)
        await store.acquire_lease("l", ORGANISATION, "p", 100, 100, SECOND, 0)
        clock = [datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)]
        sweeper = Sweeper(store, 10 * SECOND, lambda: clock[0])
        await asyncio.gather(sweeper.sweep(), sweeper.sweep())
        assert await wallet(store) == (10**9, 0, 100)
        clock[0] += timedelta(seconds=10)
        await asyncio.gather(sweeper.sweep(), sweeper.sweep())
        assert await wallet(store) == (10**9, 0, 0)
        await store.settle([charge("c", 5, lease_id="l")], 0)
        assert await wallet(store) == (10**9 - 5, 0, 0)


class Hourly:
    """A price list whose price depends on the hour."""

    def __init__(self) -> None:
        self.each = 1

    def find(self, vendor: str, model: str, *, exact_vendor: bool) -> Price | None:
        return make_price("genai-prices", {"input_pico": self.each if model == "night" else 9})

    def all(self) -> list[Price]:
        return []


async def test_prices_that_change_are_announced(database_url: str) -> None:
    async with open_store(database_url) as store:
        feed = ChangeFeed(store.database, changes)
        listed = Hourly()
        prices = Prices(PriceBook({}, {}, frozenset(), listed), PriceStore(store.database), feed, now)
        keys = [PriceKey(provider="a", model="night"), PriceKey(provider="a", model="day")]
        before = await prices.find(keys)
        await prices.check()
        assert await feed.position() == 0
        listed.each = 2
        await prices.check()
        await prices.check()
        assert [(change.topic, change.key) for change in await feed.since(0)] == [("price", "a/night")]
        after = await prices.find(keys)
        assert [b.version == a.version for b, a in zip(before, after, strict=True)] == [False, True]


async def test_background_work_survives_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    done = asyncio.Event()
    attempts = 0

    async def action() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ConnectionError("the database is away")
        done.set()

    repeating = Repeating("test", 0.01, action)
    repeating.start()
    async with asyncio.timeout(60):
        await done.wait()
    await repeating.stop()
    assert "background_failed test" in caplog.text
