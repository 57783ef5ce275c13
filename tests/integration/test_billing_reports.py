"""Usage events, sums of them, rating again and reconciliation, through their rpcs."""

from __future__ import annotations

import importlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from omnihub.billing.v1 import billing_service_pb2 as billing_pb
from omnihub.billing.v1 import report_service_pb2 as pb
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.price_pb2 import PriceKey
from omnihub.billing.v1.report_service_api import ReportService
from omnihub.billing.v1.usage_pb2 import Charge, ChargePart, Units
from omnihub.common.v1.chat_pb2 import Usage

from services.billing.domain.usage import Period, microseconds
from services.billing.settings import BillingSettings, MarginSettings, PriceSettings
from services.billing.store import reports as reports_module
from services.billing.store import usage as usage_module
from services.billing.store.prices import PriceStore
from services.billing.store.reports import TOTAL, Reports
from services.billing.store.rollup import EVERYONE, MINUTE
from services.billing.store.tables import usage_event, usage_rollup
from services.common.rpc import Call, Identity, RpcError
from services.credits.margins import MarginBook
from services.credits.money import format_nano
from services.credits.rating import sell_of
from tests.support.billing import (
    ORGANISATION,
    Directory,
    billing_connector,
    call_of,
    charge,
    open_store,
    tamper,
)

ANYONE = Call("req_test", Identity(organisation_id="org_b", scopes=frozenset({"usage"}), token="org_b"))
SETTINGS = BillingSettings(
    prices={
        "wall/*": PriceSettings(
            input_per_million=Decimal("1.37"),
            output_per_million=Decimal("2.11"),
            per_second=Decimal("0.0003"),
        ),
        "claude/*": PriceSettings(per_request=Decimal("0.000000001")),
    },
    margins=(MarginSettings(model="wall/*", basis_points=333, floor=Decimal("0.000001")),),
)
MODELS = ("wall/gpt-x", "wall/gpt-y", "claude/y")
STATES = ("complete", "truncated", "cancelled", "upstream_error", "out_of_budget", "failed")
START = datetime(2026, 3, 1, tzinfo=UTC)


def a_moment(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


class Books:
    """Clients of one billing, and charges as the router would write them."""

    def __init__(self, connector: Any) -> None:
        self.billing = connector.connect(BillingService, "billing")
        self.reports = connector.connect(ReportService, "billing")
        self.random = random.Random(7)

    async def rated(self, number: int, at: datetime, **fields: Any) -> Charge:
        """Return a charge that is rated with what is in force."""
        model = fields.pop("model", self.random.choice(MODELS))
        provider, _, name = model.partition("/")
        request = billing_pb.BatchGetPricesRequest(keys=[PriceKey(provider=provider, model=name)])
        answer = await self.billing.batch_get_prices(request, call_of())
        (price,) = answer.prices
        organisation_id = fields.pop("organisation_id", self.random.choice([ORGANISATION, "org_b"]))
        margin = MarginBook("v", answer.margins).of(organisation_id, model)
        usage = fields.pop("usage", None) or Usage(
            input_total=self.random.randrange(5000), output_total=self.random.randrange(900)
        )
        units = Units(milliseconds=self.random.randrange(9999))
        rated = sell_of(usage, price, margin, units=units)
        saved = self.random.randrange(-1000, 1000)
        made = charge(
            f"att_{number:06d}",
            rated.sell,
            organisation_id,
            cost_nano_credits=rated.cost,
            model=model,
            provider=provider,
            usage=usage,
            units=units,
            price_version=price.version,
            margin_version="" if margin is None else margin.version,
            cost_source="price",
            state=self.random.choice(STATES),
            modality=self.random.choice(["chat", "embeddings", "image"]),
            key_id=self.random.choice(["key_1", "key_2"]),
            user_id=self.random.choice(["user_1", "user_2", ""]),
            workspace_id="ws_1",
            baseline_nano_credits=rated.sell + saved,
            savings_nano_credits=saved,
            savings_routing_nano_credits=saved - 5,
            savings_prompt_cache_nano_credits=5,
            savings_formula="savings-1",
            **fields,
        )
        made.at.FromDatetime(at)
        return made

    async def fill(self, count: int = 60, *, days: int = 4) -> list[Charge]:
        """Settle charges spread over some days, in batches, some of them twice."""
        charges = [
            await self.rated(number, START + timedelta(seconds=self.random.randrange(days * 86_400)))
            for number in range(count)
        ]
        for start in range(0, count, 17):
            batch = billing_pb.SettleRequest(charges=charges[start : start + 20])
            await self.billing.settle(batch, call_of())
        return charges

    async def events(self, call: Call | None = None, **fields: Any) -> list[pb.UsageEvent]:
        found: list[pb.UsageEvent] = []
        token = ""
        while True:
            request = pb.ListUsageEventsRequest(**{"page_size": 7, **fields}, page_token=token)
            page = await self.reports.list_usage_events(request, call or call_of())
            found += page.events
            token = page.next_page_token
            if not token:
                return found


@asynccontextmanager
async def running(database_url: str, tmp_path: Path) -> AsyncIterator[Books]:
    directory = Directory(ORGANISATION, "org_b")
    async with billing_connector(database_url, tmp_path, directory, SETTINGS) as connector:
        yield Books(connector)


def amount(charges: Iterator[Charge] | list[Charge]) -> str:
    return format_nano(sum(each.amount_nano_credits for each in charges))


PERIODS = [
    ("", ""),
    ("2026-03-02", "2026-03-04"),
    ("2026-03-01T10:17:33.5Z", "2026-03-03T02:00:00Z"),
    ("2026-03-02T10:17:33Z", "2026-03-02T10:41:00Z"),
    ("2026-03-02T10:17:33Z", ""),
    ("", "2026-03-02T23:59:59.999999Z"),
    ("2026-03-02", "2026-03-02"),
]


def within(charges: list[Charge], start: str, end: str, organisation_id: str = "") -> list[Charge]:
    def moment(text: str) -> datetime:
        return datetime.fromisoformat(text if "T" in text else f"{text}T00:00:00+00:00")

    return [
        each
        for each in charges
        if (not organisation_id or each.organisation_id == organisation_id)
        and (not start or each.at.ToDatetime(UTC) >= moment(start))
        and (not end or each.at.ToDatetime(UTC) < moment(end))
    ]


async def test_sums_and_reports_equal_the_sum_of_the_events(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as books:
        charges = await books.fill(80)
        for start, end in PERIODS:
            own = within(charges, start, end, ORGANISATION)
            period = {"from": start, "to": end}
            events = await books.events(**period)
            assert sum((Decimal(event.amount) for event in events), Decimal(0)) == Decimal(amount(own))
            assert [event.event_id for event in events] == [
                each.charge_id
                for each in sorted(own, key=lambda each: (each.at.ToMicroseconds(), each.charge_id))
            ]
            report = await books.reports.get_usage_report(pb.GetUsageReportRequest(**period), call_of())
            assert (report.total.cost, report.total.requests) == (amount(own), len(own))
            for name in ("model", "provider", "key", "user", "workspace", "day"):
                groups = getattr(report, f"by_{name}")
                assert sum((Decimal(group.cost) for group in groups), Decimal(0)) == Decimal(amount(own)), (
                    name
                )
            expected = {model: amount([each for each in own if each.model == model]) for model in MODELS}
            assert {group.group: group.cost for group in report.by_model} == {
                model: cost for model, cost in expected.items() if any(each.model == model for each in own)
            }
            listed = await books.billing.list_usage(
                billing_pb.ListUsageRequest(**period, group_by="modality"), call_of()
            )
            assert listed.total.cost == amount(own)
            savings = sum(each.savings_nano_credits for each in own)
            assert (listed.total.savings, listed.total.savings_prompt_cache) == (
                format_nano(savings), format_nano(5 * len(own)),
            )  # fmt: skip
            everyone = within(charges, start, end)
            platform = await books.reports.get_platform_report(
                pb.GetPlatformReportRequest(**period), call_of()
            )
            cost = sum(each.cost_nano_credits for each in everyone)
            paid = sum(each.amount_nano_credits for each in everyone)
            assert (platform.total.revenue, platform.total.cost, platform.total.margin) == (
                format_nano(paid), format_nano(cost), format_nano(paid - cost),
            )  # fmt: skip
            assert platform.active_organisations == len({each.organisation_id for each in everyone})
            assert platform.active_users == len({each.user_id for each in everyone} - {""})
            for name in ("model", "provider", "organisation", "day"):
                groups = getattr(platform, f"by_{name}")
                assert sum((Decimal(group.revenue) for group in groups), Decimal(0)) == Decimal(
                    format_nano(paid)
                )


async def test_days_have_pages(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as books:
        charges = await books.fill(40)
        found: dict[str, str] = {}
        token = ""
        while True:
            request = billing_pb.ListUsageRequest(group_by="day", page_size=1, page_token=token)
            page = await books.billing.list_usage(request, call_of())
            found |= {group.group: group.cost for group in page.groups}
            token = page.next_page_token
            if not token:
                break
        own = within(charges, "", "", ORGANISATION)
        days = sorted({each.at.ToDatetime().date().isoformat() for each in own})
        assert found == {
            day: amount([each for each in own if each.at.ToDatetime().date().isoformat() == day])
            for day in days
        }


async def test_what_was_stored_before_sums_existed_is_summed_by_the_migration(
    database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as books:
        await books.fill(30)
    names = "0003_prices", "0006_minutes"
    migrations = [importlib.import_module(f"services.billing.migrations.{name}") for name in names]
    async with open_store(database_url) as store:

        async def rollup() -> list[Any]:
            async with store.database.reading() as connection:
                query = sa.select(usage_rollup).order_by(*usage_rollup.primary_key)
                return list(await connection.execute(query))

        def again(connection: sa.Connection) -> None:
            if not store.database.sqlite:
                connection.exec_driver_sql('SET LOCAL search_path TO "billing"')
            with Operations.context(MigrationContext.configure(connection)):
                for migration in migrations:
                    migration.sum_up()

        before = await rollup()
        async with store.database.transaction() as connection:
            await connection.execute(sa.delete(usage_rollup))
            await connection.run_sync(again)
        assert await rollup() == before


async def test_the_cost_of_a_question_does_not_grow_with_the_events(database_url: str) -> None:
    """The same rows are read for 1,000 events of an hour and for 20: those of the rollup."""
    async with open_store(database_url) as store:
        for batch in range(4):
            await store.settle(
                [charge(f"c{batch}-{n}", 1, model="wall/x") for n in range(250)], microseconds(START)
            )
        async with store.database.reading() as connection:
            rows = await connection.scalar(
                sa.select(sa.func.count()).where(usage_rollup.c.organisation_id == ORGANISATION)
            )
        assert rows == 12
        groups, total = await store.usage(ORGANISATION, Period(None, None), "model", None, 10)
        assert (groups[0].amount, total.requests) == (1000, 1000)
        await tamper(store, sa.delete(usage_event))
        # The events are not looked at.
        assert (await store.usage(ORGANISATION, Period(None, None), "", None, 1))[1] == replace(total)
        # Nor for a period of whole minutes, of totals.
        ragged = Period(microseconds(START) - 90 * MINUTE, microseconds(START) + 30 * MINUTE)
        assert (await store.usage(ORGANISATION, ragged, "", None, 1))[1] == replace(total)
        days, _ = await store.usage(ORGANISATION, ragged, "day", None, 9)
        assert [(day.group, day.amount) for day in days] == [("2026-03-01", 1000)]


async def test_an_event_tells_everything(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as books:
        made = await books.rated(
            1,
            START,
            model="wall/gpt-x",
            organisation_id=ORGANISATION,
            usage=Usage(
                input_total=9, cache_read=2, output_total=3, output_reasoning=1, service_tier="flex",
                provider_cost="0.000004",
            ),
        )  # fmt: skip
        made.units.CopyFrom(Units(images=2, pixels=1_500_000, milliseconds=2500, characters=7))
        await books.billing.settle(billing_pb.SettleRequest(charges=[made]), call_of())
        (event,) = await books.events()
        assert (event.images, event.megapixels, event.seconds, event.characters) == (2, 1.5, 2.5, 7)
        assert (event.input_tokens, event.cache_read_tokens, event.reasoning_tokens) == (9, 2, 1)
        assert (event.service_tier, event.at, event.late) == ("flex", "2026-03-01T00:00:00Z", False)
        assert (event.amount, event.cost) == (format_nano(made.amount_nano_credits), "0.000004")
        assert '"provider_cost":"0.000004"' in event.usage_json
        own = Call("req", Identity(organisation_id=ORGANISATION, scopes=frozenset({"usage"}), token="t"))
        (event,) = await books.events(own)
        assert (event.cost, "provider_cost" in event.usage_json) == ("", False)


async def test_events_belong_to_their_organisation(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as books:
        await books.fill(20)
        assert {event.organisation_id for event in await books.events(ANYONE)} == {"org_b"}
        for work, request in (
            (books.reports.list_usage_events, pb.ListUsageEventsRequest(organisation_id=ORGANISATION)),
            (books.reports.get_usage_report, pb.GetUsageReportRequest(organisation_id=ORGANISATION)),
        ):
            with pytest.raises(RpcError) as refused:
                await work(request, ANYONE)
            assert refused.value.reason == "PERMISSION_DENIED"
            with pytest.raises(RpcError) as nobody:
                await work(type(request)(), Call("req", Identity()))
            assert nobody.value.reason == "MISSING_CREDENTIAL"
        # The platform may look at any.
        assert {event.organisation_id for event in await books.events(organisation_id="org_b")} == {"org_b"}
        some = await books.events(state="cancelled")
        assert {event.state for event in some} <= {"cancelled"}
        assert await books.events(cost_source="unknown") == []


async def rerate(books: Books, **fields: Any) -> tuple[int, int, list[pb.Difference], Decimal]:
    checked = reproduced = 0
    found: list[pb.Difference] = []
    rounding, token = Decimal(0), ""
    while True:
        request = pb.RerateUsageRequest(page_size=11, page_token=token, **fields)
        page = await books.reports.rerate_usage(request, call_of())
        checked, reproduced = checked + page.checked, reproduced + page.reproduced
        found += page.differences
        rounding += Decimal(page.rounding)
        token = page.next_page_token
        if not token:
            return checked, reproduced, found, rounding


async def test_rating_again_reproduces_every_number(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as books:
        await books.fill(50)
        first = await books.rated(100, START, model="wall/gpt-x", organisation_id=ORGANISATION)
        second = await books.rated(101, START, model="claude/y", organisation_id=ORGANISATION)
        rescued = charge("att_rescued", 0, state="complete", model="claude/y")
        for part in (first, second):
            part.ClearField("units")
            again = await books.rated(
                0, START, model=part.model, organisation_id=ORGANISATION, usage=part.usage
            )
            again.ClearField("units")
            request = billing_pb.BatchGetPricesRequest(
                keys=[PriceKey(provider=part.provider, model=part.model.partition("/")[2])]
            )
            answer = await books.billing.batch_get_prices(request, call_of())
            margin = MarginBook("v", answer.margins).of(ORGANISATION, part.model)
            rated = sell_of(part.usage, answer.prices[0], margin, 5)
            rescued.parts.append(
                ChargePart(
                    model=part.model, usage=part.usage, price_version=part.price_version,
                    margin_version=part.margin_version, limit_nano_credits=5,
                    cost_nano_credits=rated.cost, amount_nano_credits=rated.sell,
                )
            )  # fmt: skip
        rescued.amount_nano_credits = sum(part.amount_nano_credits for part in rescued.parts)
        rescued.cost_nano_credits = sum(part.cost_nano_credits for part in rescued.parts)
        await books.billing.settle(billing_pb.SettleRequest(charges=[rescued]), call_of())
        checked, reproduced, found, rounding = await rerate(books)
        assert (checked, reproduced, found) == (51, 51, [])
        assert 0 <= rounding < Decimal(51) / 10**9


async def test_what_does_not_come_out_the_same_is_kept_as_a_row(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as books:
        await books.fill(10)
        wrong = await books.rated(50, START, model="wall/gpt-x")
        wrong.amount_nano_credits += 1
        lost = await books.rated(51, START, model="wall/gpt-x")
        lost.price_version = "pv_lost"
        await books.billing.settle(billing_pb.SettleRequest(charges=[wrong, lost]), call_of())
        for _ in range(2):
            checked, reproduced, found, _rounding = await rerate(books)
            assert (checked, reproduced) == (12, 10)
            assert [each.event_id for each in found] == ["att_000050", "att_000051"]
        assert found[0].ours != found[0].theirs
        assert "pv_lost" in found[1].reason
        request = pb.ListDifferencesRequest(kind="rating", page_size=1)
        page = await books.reports.list_differences(request, call_of())
        request.page_token = page.next_page_token
        rest = await books.reports.list_differences(request, call_of())
        assert {page.differences[0].event_id, rest.differences[0].event_id} == {"att_000050", "att_000051"}
        assert rest.next_page_token == ""


async def test_a_bill_is_compared_by_model_and_day(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as books:
        for number, (model, cost, day) in enumerate(
            [
                ("wall/gpt-x", 100, 1), ("wall/gpt-x", 100, 1), ("wall/gpt-x", 300, 2), ("wall/gpt-y", 5, 2),
                ("wall/gpt-y", 50, 3), ("claude/claude-z", 400, 2),
            ]
        ):  # fmt: skip
            made = charge(f"c{number}", 1, model=model, cost_nano_credits=cost * 10**9)
            made.at.FromDatetime(datetime(2026, 3, day, 23, tzinfo=UTC))
            await books.billing.settle(billing_pb.SettleRequest(charges=[made]), call_of())
        document = (
            "start_time_iso,amount_value,amount_currency,line_item\n"
            '2026-03-01T00:00:00+00:00,150.5,usd,"gpt-x-2026-01-31, input"\n'
            '2026-03-01T00:00:00+00:00,50,usd,"gpt-x-2026-01-31, output"\n'
            '2026-03-02T00:00:00+00:00,302,usd,"gpt-x-2026-01-31, input"\n'
            '2026-03-03T00:00:00+00:00,49.5,usd,"gpt-y, input"\n'
            '2026-03-03T00:00:00+00:00,7,usd,"gpt-new, input"\n'
        )
        request = pb.ReconcileUsageRequest(provider="wall", document=document)
        for _ in range(2):
            answer = await books.reports.reconcile_usage(request, call_of())
            assert (answer.compared, answer.agreed) == (5, 2)
            assert [(each.model, each.day, each.ours, each.theirs) for each in answer.differences] == [
                ("gpt-new", "2026-03-03", "", "7"),
                ("gpt-x", "2026-03-02", "300", "302"),
                ("gpt-y", "2026-03-02", "5", ""),
            ]
        assert (answer.theirs, answer.ours) == ("559", "555")
        kept = await books.reports.list_differences(pb.ListDifferencesRequest(), call_of())
        assert {(each.model, each.day, each.kind) for each in kept.differences} == {
            ("gpt-new", "2026-03-03", "attempt_only"),
            ("gpt-x", "2026-03-02", "reconciliation"),
            ("gpt-y", "2026-03-02", "charge_only"),
        }


async def attempts(books: Books, charges: dict[str, tuple[int, int, list[tuple[str, str]]]]) -> None:
    """Charge what costs so many credits, so many seconds after the day began, and names these attempts."""
    for number, (cost, second, names) in charges.items():
        made = charge(number, 1, model="wall/gpt-x", provider="wall", cost_nano_credits=cost * 10**9)
        made.at.FromDatetime(START + timedelta(seconds=second))
        for provider, name in names:
            made.attempts.add(provider=provider, id=name)
        await books.billing.settle(billing_pb.SettleRequest(charges=[made]), call_of())


async def reconciled(books: Books, *lines: str) -> pb.ReconcileUsageResponse:
    document = "\n".join(("generation_id,created_at,cost_total,model_permaslug", *lines))
    request = pb.ReconcileUsageRequest(provider="wall", document=document)
    answer = await books.reports.reconcile_usage(request, call_of())
    again = await books.reports.reconcile_usage(request, call_of())
    for each in (*answer.differences, *again.differences):
        each.found_at = ""
    assert again == answer
    return answer


async def test_an_export_of_attempts_is_compared_one_by_one(database_url: str, tmp_path: Path) -> None:
    """Sums that agree within the tolerance hide neither who was not charged nor what was not billed."""
    async with running(database_url, tmp_path) as books:
        await attempts(
            books,
            {
                "both": (100, 10, [("wall", "gen-1")]),
                # Rescued: the export has what another provider began.
                "rescued": (20, 20, [("wall", "gen-2"), ("claude", "msg-1")]),
                "ours": (3, 30, [("wall", "gen-3")]),
                "free": (0, 40, [("wall", "gen-4")]),
                # Charged before midnight, billed after it.
                "late": (5, -2, [("wall", "gen-5")]),
                "day_before": (7, -30, [("wall", "gen-6")]),
            },
        )
        answer = await reconciled(
            books,
            "gen-1,2026-03-01 00:00:11,60,gpt-x",
            "gen-1,2026-03-01 00:00:11,40,gpt-x",
            "gen-2,2026-03-01 00:00:21,18,gpt-x",
            "gen-5,2026-03-01 00:00:01,4.9,gpt-x",
            "gen-7,2026-03-01 00:01:00,0.1,gpt-x",
            "gen-8,2026-03-01 00:02:00,0.0,gpt-x",
        )
        assert (answer.attempts, answer.attempts_only, answer.charges_only, answer.charges_unnamed) == (
            5,
            1,
            1,
            0,
        )
        found = [
            (each.kind, each.attempt_id, each.event_id, each.ours, each.theirs) for each in answer.differences
        ]
        assert found == [("attempt_only", "gen-7", "", "", "0.1"), ("charge_only", "gen-3", "ours", "3", "")]
        assert {each.day for each in answer.differences} == {"2026-03-01"}
        kept = await books.reports.list_differences(pb.ListDifferencesRequest(kind="charge_only"), call_of())
        assert [(each.event_id, each.attempt_id, each.provider) for each in kept.differences] == [
            ("ours", "gen-3", "wall")
        ]
        listed = await books.reports.list_differences(pb.ListDifferencesRequest(), call_of())
        assert len(listed.differences) == 2


async def test_charges_that_name_no_attempt_are_compared_by_their_sums(
    database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as books:
        await attempts(books, {"named": (10, 10, [("wall", "gen-1")]), "unnamed": (20, 20, [])})
        answer = await reconciled(books, "gen-1,2026-03-01,10,gpt-x", "gen-2,2026-03-01,5,gpt-x")
        found = [(each.kind, each.attempt_id, each.ours, each.theirs) for each in answer.differences]
        assert found == [("reconciliation", "", "30", "15"), ("attempt_only", "gen-2", "", "5")]
        assert (answer.charges_only, answer.charges_unnamed) == (0, 1)


async def test_what_one_side_alone_has_is_never_within_the_tolerance(tmp_path: Path) -> None:
    async with running("", tmp_path) as books:
        await attempts(books, {"ours": (1, 10, [])})
        document = "model,day,amount\ngpt-z,2026-03-01,0.000001\ngpt-free,2026-03-01,0\n"
        request = pb.ReconcileUsageRequest(provider="wall", document=document)
        answer = await books.reports.reconcile_usage(request, call_of())
        assert [(each.kind, each.model) for each in answer.differences] == [
            ("charge_only", "gpt-x"),
            ("attempt_only", "gpt-z"),
        ]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "document"),
        ("a,b\n1,2\n", "no known shape"),
        ("model,day,amount\n", "no line besides"),
        ("model,day,amount\nm,2026-02-30,1\n", "line 2.*not a date"),
        ("model,day,amount\nm,2026-02-01,lots\n", "line 2.*not an amount"),
        ("model,day,amount\nm,2026-02-01,NaN\n", "line 2"),
        ("model,day,amount\nm,2026-02-01,1\nm,2026-02-01,1e99\n", "line 3"),
        ("start_time_iso,line_item,amount_value,amount_currency\n2026-01-01,m,1,eur\n", "line 2.*not USD"),
        ('model,day,amount\n"m,2026-02-01,1\n' + "x" * 200_000, "line|document"),
    ],
)
async def test_a_document_that_cannot_be_read_is_refused(tmp_path: Path, document: str, words: str) -> None:
    async with running(f"sqlite:///{tmp_path / 'b.db'}", tmp_path) as books:
        with pytest.raises(RpcError, match=words) as refused:
            await books.reports.reconcile_usage(
                pb.ReconcileUsageRequest(provider="wall", document=document), call_of()
            )
        assert refused.value.reason == "INVALID_ARGUMENT"
        assert not (await books.reports.list_differences(pb.ListDifferencesRequest(), call_of())).differences


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.RerateUsageRequest(page_size=10_001), "page_size"),
        (pb.RerateUsageRequest(page_token="nonsense"), "page_token"),
        (pb.RerateUsageRequest(to="never"), "to"),
        (pb.ReconcileUsageRequest(provider="wall", document="a\n1", shape="xls"), "shape"),
        (pb.ReconcileUsageRequest(provider="", document="a\n1"), "provider"),
        (pb.ListDifferencesRequest(kind="love"), "kind"),
        (pb.ListDifferencesRequest(page_size=1001), "page_size"),
        (pb.ListUsageEventsRequest(page_size=1001), "page_size"),
        (pb.GetPlatformReportRequest(to="2026-13-01"), "to"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(tmp_path: Path, request_: Any, field: str) -> None:
    async with running(f"sqlite:///{tmp_path / 'b.db'}", tmp_path) as books:
        names = {
            pb.RerateUsageRequest: books.reports.rerate_usage,
            pb.ReconcileUsageRequest: books.reports.reconcile_usage,
            pb.ListDifferencesRequest: books.reports.list_differences,
            pb.ListUsageEventsRequest: books.reports.list_usage_events,
            pb.GetPlatformReportRequest: books.reports.get_platform_report,
        }
        with pytest.raises(RpcError) as refused:
            await names[type(request_)](request_, call_of())
        assert (refused.value.reason, refused.value.violations[0].field) == ("INVALID_ARGUMENT", field)


async def test_savings_never_move_money(database_url: str) -> None:
    """I13: the same charges with other savings leave the same balances and entries."""
    async with open_store(database_url) as store:
        plain = [charge(f"a{n}", n, "org_a") for n in range(10)]
        saved = [
            charge(
                f"b{n}", n, "org_b", savings_nano_credits=n - 10**12, savings_routing_nano_credits=-(10**12),
                savings_cache_nano_credits=n, baseline_nano_credits=10**15, savings_formula="savings-1",
            )
            for n in range(10)
        ]  # fmt: skip
        await store.settle(plain, 0)
        await store.settle(saved, 0)
        one, other = await store.balance("org_a"), await store.balance("org_b")
        assert (one.posted, one.held, one.leased) == (other.posted, other.held, other.leased)
        platform = (await store.usage(EVERYONE, Period(None, None), "", None, 1))[1]
        assert (platform.amount, platform.savings_cache) == (90, 45)


@pytest.mark.parametrize("report", ["of an organisation", "of the platform"])
async def test_all_sums_of_a_report_are_of_one_moment(
    database_url: str, monkeypatch: pytest.MonkeyPatch, report: str
) -> None:
    async with open_store(database_url) as store:
        await store.settle([charge("a", 100, provider="wall", model="wall/x")], 1)
        module, sums, booked = (usage_module if report == "of an organisation" else reports_module), [], []

        async def sums_of(*arguments: Any, **options: Any) -> Any:
            found = await usage_module_sums(*arguments, **options)
            if not booked:
                # Between two questions of the report.
                booked.append(await store.settle([charge("b", 10, provider="wall", model="wall/x")], 2))
            return found

        usage_module_sums = usage_module.sums_of
        monkeypatch.setattr(module, "sums_of", sums_of)
        period = Period(None, None)
        if report == "of an organisation":
            groups, total = await store.usage(ORGANISATION, period, "model", None, 10)
            sums = [groups, [total]]
        else:
            reports = Reports(store.database, PriceStore(store.database))
            sums = await reports.usage(EVERYONE, period, "model", TOTAL)
        assert booked
        assert [[each.amount for each in some] for some in sums] == [[100], [100]]
