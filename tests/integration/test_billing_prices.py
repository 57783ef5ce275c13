"""The price book and margins, through their rpcs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from omnihub.billing.v1 import billing_service_pb2 as billing_pb
from omnihub.billing.v1 import budget_service_pb2 as budget_pb
from omnihub.billing.v1 import price_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.billing.v1.price_pb2 import PriceKey
from omnihub.billing.v1.price_service_api import PriceService
from omnihub.common.v1.chat_pb2 import Usage

from services.billing.price_list import GenaiPriceList
from services.billing.settings import BillingSettings, MarginSettings, PriceSettings
from services.common.db import Database
from services.common.rpc import RpcError
from services.credits.margins import MarginBook
from services.credits.rating import rate
from tests.support.billing import Directory, billing_connector, call_of, open_store

FAST = {"price_refresh_interval_s": 0.02, "price_check_interval_s": 0.05}
FILE = BillingSettings(
    prices={
        "wall/gpt-x": PriceSettings(per_request=Decimal("0.01")),
        "wall/*": PriceSettings(per_image=Decimal(1)),
    },
    margins=(MarginSettings(model="wall/*", basis_points=500),),
    **FAST,  # type: ignore[arg-type]
)
KEY = PriceKey(provider="acme", model="m-1")


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - asked from outside, as a caller would
            await asyncio.sleep(0.02)


def numbers(**values: str) -> pb.PriceNumbers:
    return pb.PriceNumbers(**values)


def token_price(each: str = "2") -> pb.PriceNumbers:
    return numbers(input_per_million="1", output_per_million=each)


class Book:
    """Clients of one billing."""

    def __init__(self, connector: Any) -> None:
        self.prices = connector.connect(PriceService, "billing")
        self.billing = connector.connect(BillingService, "billing")

    async def set(self, **fields: Any) -> pb.PriceVersion:
        request = pb.SetPriceRequest(**{"provider": "acme", "model": "m-1", "price": token_price(), **fields})
        return (await self.prices.set_price(request, call_of())).price

    async def found(self, key: PriceKey = KEY, **more: Any) -> billing_pb.BatchGetPricesResponse:
        return await self.billing.batch_get_prices(
            billing_pb.BatchGetPricesRequest(keys=[key], **more), call_of()
        )

    async def current(self) -> str:
        request = pb.GetPriceRequest(provider="acme", model="m-1")
        return (await self.prices.get_price(request, call_of())).price.price.output_per_million

    async def versions(self, **fields: Any) -> list[pb.PriceVersion]:
        request = pb.ListPriceVersionsRequest(**fields)
        return list((await self.prices.list_price_versions(request, call_of())).prices)

    async def margin(self, **fields: Any) -> pb.MarginVersion:
        return (await self.prices.set_margin(pb.SetMarginRequest(**fields), call_of())).margin

    async def margins(self, **fields: Any) -> list[pb.MarginVersion]:
        return list((await self.prices.list_margins(pb.ListMarginsRequest(**fields), call_of())).margins)


def running(database_url: str, tmp_path: Path, settings: BillingSettings = FILE, **more: Any) -> Any:
    return billing_connector(database_url, tmp_path, Directory("org_a"), settings, **more)


async def test_a_price_that_is_set_applies_at_once_and_every_version_stays(
    database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as connector:
        book = Book(connector)
        assert not (await book.found()).prices
        first = await book.set(note="the contract of May")
        (price,) = (await book.found()).prices
        assert (price.output_pico, price.source, price.version) == (2_000_000, "admin", first.version)
        assert (first.note, first.managed_by_file, first.price.output_per_million) == (
            "the contract of May", False, "2",
        )  # fmt: skip
        # The same again changes nothing.
        assert (await book.set(note="again")).note == "the contract of May"
        await book.set(price=token_price("3"))
        assert await book.current() == "3"
        versions = await book.versions(provider="acme")
        assert [version.price.output_per_million for version in versions] == ["3", "2"]
        await book.set(withdraw=True)
        assert not (await book.found()).prices
        with pytest.raises(RpcError, match="nobody knows") as unknown:
            await book.current()
        assert unknown.value.reason == "PRICE_UNKNOWN"
    async with running(database_url, tmp_path) as connector:
        assert len(await Book(connector).versions(provider="acme")) == 3
    async with open_store(database_url) as store:
        schema = "" if store.database.sqlite else "billing."
        for statement in (
            f"UPDATE {schema}price_version SET price = price",
            f"DELETE FROM {schema}price_entry",
        ):
            await assert_immutable(store.database, statement)


async def assert_immutable(database: Database, statement: str) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="immutable"):
        async with database.transaction() as connection:
            await connection.exec_driver_sql(statement)


async def test_what_the_file_declares_is_shown_and_cannot_be_set(database_url: str, tmp_path: Path) -> None:
    async with running(
        database_url, tmp_path, configured_prices={"chat": PriceSettings(per_request=Decimal(1))}
    ) as connector:
        book = Book(connector)
        versions = {version.configured_model or version.model: version for version in await book.versions()}
        assert set(versions) == {"chat", "gpt-x", "*"}
        assert all(version.managed_by_file for version in versions.values())
        assert versions["gpt-x"].price.per_request == "0.01"
        with pytest.raises(RpcError, match=r"omnihub\.toml") as refused:
            await book.set(provider="wall", model="gpt-x")
        assert (refused.value.reason, refused.value.row.http) == ("MANAGED_BY_FILE", 412)
        # Less specific in the file: one model may be set.
        await book.set(provider="wall", model="gpt-y", price=numbers(per_request="0.5"))
        (price,) = (await book.found(PriceKey(provider="wall", model="gpt-y"))).prices
        assert price.request_pico == 5 * 10**11
        with pytest.raises(RpcError) as managed:
            await book.margin(model="wall/*", basis_points=1)
        assert managed.value.reason == "MANAGED_BY_FILE"
    # A file without them: they are withdrawn, and still listed.
    async with running(database_url, tmp_path, BillingSettings()) as connector:
        book = Book(connector)
        last = (await book.versions(provider="wall", model="gpt-x"))[0]
        assert (last.withdrawn, last.managed_by_file, last.source) == (True, False, "configured")
        assert not await book.margins(in_force=True)
        assert [margin.withdrawn for margin in await book.margins()] == [True, False]


async def test_a_price_of_the_future_begins_then_and_followers_hear_of_it(
    database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as connector:
        book = Book(connector)
        await book.set()
        soon = datetime.now(UTC) + timedelta(seconds=0.6)
        await book.set(price=token_price("9"), effective_from=soon.isoformat())
        assert await book.current() == "2"

        async def begun() -> bool:
            return await book.current() == "9"

        await eventually(begun)

        async def announced() -> bool:
            stream = book.billing.watch_changes(billing_pb.WatchChangesRequest(), call_of())
            async for answer in stream:
                keys = [change.key for change in answer.changes]
                await stream.aclose()
                return keys.count("acme/m-1") >= 3
            return False

        await eventually(announced)


async def test_another_process_sees_what_is_set(postgresql_url: str, tmp_path: Path) -> None:
    async with (
        running(postgresql_url, tmp_path) as connector,
        running(postgresql_url, tmp_path) as other,
    ):
        one, two = Book(connector), Book(other)
        assert not (await two.found()).prices
        await one.set()
        await one.margin(organisation_id="org_a", basis_points=7)

        async def seen() -> bool:
            answer = await two.found()
            return bool(answer.prices) and len(answer.margins) == 2

        await eventually(seen)


async def test_list_prices_are_kept_when_they_are_first_asked_for(database_url: str, tmp_path: Path) -> None:
    key = PriceKey(provider="openai", model="gpt-4o")
    for _ in range(2):
        async with running(database_url, tmp_path) as connector:
            book = Book(connector)
            (price,) = (await book.found(key)).prices
            assert [version.version for version in await book.versions(provider="openai")] == [price.version]


async def test_an_unknown_price_is_missing_or_flagged_never_zero(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as connector:
        book = Book(connector)
        assert not (await book.found()).prices
        (price,) = (await book.found(include_fallback=True)).prices
        assert (price.source, price.input_pico, price.output_pico) == ("fallback", 10**7, 3 * 10**7)
        assert price.key == KEY


async def test_margins_are_versions_too_and_reach_the_router(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as connector:
        book = Book(connector)
        before = await book.found()
        assert [margin.basis_points for margin in before.margins] == [500]
        assert not (await book.found(margins_version=before.margins_version)).margins
        set_to = await book.margin(
            plan="pro", basis_points=-250, floor="0.000001", fixed=numbers(per_request="0.0001")
        )
        assert (set_to.model, set_to.floor, set_to.fixed.per_request) == ("*", "0.000001", "0.0001")
        after = await book.found(margins_version=before.margins_version)
        (margin,) = (each for each in after.margins if each.plan)
        assert (margin.version, margin.basis_points, margin.floor_pico) == (set_to.version, -250, 10**6)
        assert margin.fixed.request_pico == 10**8
        assert (await book.margin(plan="pro", basis_points=1)).version != set_to.version
        assert [each.basis_points for each in await book.margins(in_force=True)] == [1, 500]
        await book.margin(plan="pro", withdraw=True)
        assert [each.basis_points for each in await book.margins(in_force=True)] == [500]
        assert len(await book.margins()) == 4


async def test_lists_have_pages(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path, BillingSettings()) as connector:
        book = Book(connector)
        for number in range(5):
            await book.set(model=f"m-{number}")
            await book.margin(model=f"acme/m-{number}", basis_points=number)
        seen: list[str] = []
        token = ""
        while True:
            request = pb.ListPriceVersionsRequest(page_size=2, page_token=token)
            page = await book.prices.list_price_versions(request, call_of())
            seen += [version.model for version in page.prices]
            token = page.next_page_token
            if not token:
                break
        assert seen == ["m-4", "m-3", "m-2", "m-1", "m-0"]
        page = await book.prices.list_margins(pb.ListMarginsRequest(page_size=3, in_force=True), call_of())
        request = pb.ListMarginsRequest(page_size=3, page_token=page.next_page_token, in_force=True)
        rest = await book.prices.list_margins(request, call_of())
        assert [len(page.margins), len(rest.margins), rest.next_page_token] == [3, 2, ""]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"provider": ""}, "provider", "empty"),
        ({"provider": "a/b"}, "provider", "one configured provider"),
        ({"model": "a\0"}, "model", "NUL"),
        ({"price": numbers()}, "price", "at least one number"),
        ({"price": numbers(input_per_million="1")}, "price", "output_per_million"),
        ({"price": numbers(per_request="-1")}, "price.per_request", "greater than or equal to 0"),
        ({"price": numbers(per_request="1e-13")}, "price.per_request", "decimal places"),
        ({"price": numbers(per_request="much")}, "price.per_request", "decimal"),
        ({"price": numbers(reasoning_per_million="1")}, "price", "special tokens"),
        ({"effective_from": "tomorrow"}, "effective_from", "RFC 3339"),
        ({"effective_from": "2020-01-01"}, "effective_from", "past"),
    ],
)
async def test_a_price_that_makes_no_sense_is_refused(
    tmp_path: Path, fields: dict[str, Any], field: str, words: str
) -> None:
    async with running(f"sqlite:///{tmp_path / 'b.db'}", tmp_path) as connector:
        book = Book(connector)
        with pytest.raises(RpcError, match=words) as refused:
            await book.set(**fields)
        assert (refused.value.reason, refused.value.violations[0].field) == ("INVALID_ARGUMENT", field)
        assert not await book.versions(provider="acme")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"organisation_id": "o", "plan": "p"}, "plan"),
        ({"model": "gpt"}, "model"),
        ({"free": True, "basis_points": 1}, "margin"),
        ({"floor": "-1"}, "floor"),
        ({"floor": "x"}, "floor"),
        ({"fixed": numbers(per_image="NaN")}, "fixed.per_image"),
        ({"basis_points": 1_000_001}, "basis_points"),
    ],
)
async def test_a_margin_that_makes_no_sense_is_refused(
    tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    async with running(f"sqlite:///{tmp_path / 'b.db'}", tmp_path) as connector:
        book = Book(connector)
        with pytest.raises(RpcError) as refused:
            await book.margin(**fields)
        assert (refused.value.reason, refused.value.violations[0].field) == ("INVALID_ARGUMENT", field)
        assert len(await book.margins()) == 1


def test_service_tiers_and_kinds_of_token_of_the_list() -> None:
    """Our numbers are the list's own, tier by tier."""
    listed = GenaiPriceList(lambda: datetime(2026, 11, 20, tzinfo=UTC))
    prices = [price for price in listed.all() if price.service_tiers]
    assert len(prices) > 50
    tiers = {tier.service_tier for price in prices for tier in price.service_tiers}
    assert {"batch", "priority"} <= tiers
    audio = [price for price in listed.all() if price.HasField("input_audio_pico")]
    assert len(audio) > 15
    usage = Usage(input_total=1000, output_total=100)
    for price in prices:
        for tier in price.service_tiers:
            usage.service_tier = tier.service_tier
            assert rate(usage, price) == rate(Usage(input_total=1000, output_total=100), tier.price)


async def test_a_margin_of_a_plan_reaches_those_who_are_on_it(database_url: str, tmp_path: Path) -> None:
    settings = BillingSettings(default_plan="free", **FAST)  # type: ignore[arg-type]
    async with running(database_url, tmp_path, settings) as connector:
        book = Book(connector)
        budgets = connector.connect(BudgetService, "billing")
        await book.margin(plan="pro", basis_points=100)
        await book.margin(plan="free", basis_points=900)

        async def assign(plan: str) -> None:
            request = budget_pb.AssignPlanRequest(organisation_id="org_a", plan=plan)
            await budgets.assign_plan(request, call_of())

        async def pays() -> list[int]:
            answer = await book.found()
            rules = MarginBook(answer.margins_version, answer.margins, answer.plans)
            found = (rules.of(organisation, "acme/m") for organisation in ("org_a", "org_other"))
            return [0 if rule is None else rule.basis_points for rule in found]

        assert await pays() == [900, 900]
        for plan, expected in (("pro", 100), ("enterprise", 0), ("", 900)):
            await assign(plan)

            async def reached(expected: int = expected) -> bool:
                return await pays() == [expected, 900]

            await eventually(reached)
