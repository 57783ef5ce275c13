"""The only wiring of billing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from omnihub.auth.v1.auth_service_api import AuthService
from omnihub.auth.v1.organisation_pb2 import Organisation
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.budget_service_api import BudgetService
from omnihub.billing.v1.ledger_service_api import LedgerService
from omnihub.billing.v1.price_service_api import PriceService
from omnihub.billing.v1.report_service_api import ReportService

from services.billing.allowances import MonthlyAllowances
from services.billing.auditor import Auditor
from services.billing.background import Repeating
from services.billing.budget_server import BudgetServer
from services.billing.domain.grant import Grant, welcome_grant
from services.billing.domain.price_book import PriceBook
from services.billing.domain.reconciliation import Tolerance
from services.billing.domain.usage import microseconds
from services.billing.ledger_server import LedgerServer
from services.billing.margins import Margins
from services.billing.media_prices import MediaPriceList, read_entries
from services.billing.organisations import Organisations
from services.billing.plan_files import plan_book_of
from services.billing.price_list import GenaiPriceList
from services.billing.price_server import PriceServer
from services.billing.prices import FALLBACK, Prices, configured_book, configured_price
from services.billing.report_server import ReportServer
from services.billing.server import SECOND, BillingServer
from services.billing.settings import BillingSettings, PriceSettings
from services.billing.store import Store
from services.billing.store.budgets import BudgetStore
from services.billing.store.prices import PriceStore
from services.billing.store.reports import Reports
from services.billing.store.tables import changes
from services.billing.sweeper import Sweeper
from services.common.change_feed import ChangeFeed
from services.common.clock import now
from services.common.crash import CrashPoints
from services.common.service import Infrastructure, Service
from services.credits.money import NANO

MIGRATIONS = Path(__file__).with_name("migrations")
# How often organisations are looked for without news of them.
SYNC_S = 60.0
# How often windows that are over are forgotten.
FORGET_S = 600.0


def build(
    settings: BillingSettings,
    infrastructure: Infrastructure,
    *,
    bootstrap_credits: Decimal,
    configured_prices: Mapping[str, PriceSettings],
) -> Service:
    """Return billing. `configured_prices` are the prices of configured models, by name."""
    database = infrastructure.database("billing")
    store = Store(database, settings.in_flight_retry_after_s)
    feed = ChangeFeed(database, changes)
    book = PriceBook(
        configured=configured_book(configured_prices),
        overrides=configured_book(settings.prices),
        free_providers=frozenset(settings.free_providers),
        listed=MediaPriceList(read_entries(), GenaiPriceList(now)),
    )
    plans = plan_book_of(settings)
    budgets = BudgetStore(database, feed, plans)
    store.limits, store.plan_book = budgets, plans
    store.crash = budgets.crash = CrashPoints(settings.crash_at)
    price_store = PriceStore(database)
    fallback = configured_price(settings.fallback_price, FALLBACK)
    prices = Prices(book, price_store, feed, now, fallback)
    margins = Margins(settings.margins, price_store, feed, now, price_store.plans, settings.default_plan)
    reports = Reports(database, price_store)
    bootstrap, free = int(bootstrap_credits * NANO), int(settings.free_credits * NANO)

    def first_grant(organisation: Organisation) -> Grant:
        return welcome_grant(organisation.organisation_id, organisation.bootstrap, bootstrap, free)

    async def welcome(grants: Sequence[Grant]) -> None:
        await store.welcome(grants, microseconds(now()))

    auth = infrastructure.connector.connect(AuthService, "auth")
    organisations = Organisations(auth, first_grant, welcome)
    sweeper = Sweeper(store, settings.lease_abandoned_after_s * SECOND, now)
    auditor = Auditor(store, settings.check_interval_s * SECOND, now)
    abandoned_after = settings.lease_abandoned_after_s * SECOND

    async def grant_allowance(organisation_id: str, period: str, amount: int, expires_at: int) -> None:
        await store.grant_allowance(organisation_id, period, amount, expires_at, microseconds(now()))

    allowances = MonthlyAllowances(budgets, grant_allowance, now)

    async def free_slices() -> None:
        at = microseconds(now())
        await budgets.free_slots(at)
        await budgets.close_abandoned(at - abandoned_after)

    async def forget_windows() -> None:
        await budgets.forget(microseconds(now()))

    background = (
        Repeating("billing-seal", settings.seal_interval_s, auditor.seal),
        Repeating("billing-check", min(settings.check_interval_s, SYNC_S), auditor.check),
        Repeating("billing-sweep", settings.sweep_interval_s, sweeper.sweep),
        Repeating("billing-allowances", settings.allowance_check_interval_s, allowances.grant_due),
        Repeating("billing-slices", settings.sweep_interval_s, free_slices),
        Repeating("billing-windows", FORGET_S, forget_windows),
        Repeating("billing-organisations", SYNC_S, organisations.sync, organisations.news),
        Repeating("billing-prices", settings.price_check_interval_s, prices.check),
        Repeating("billing-set-prices", settings.price_refresh_interval_s, prices.refresh),
        Repeating("billing-set-margins", settings.price_refresh_interval_s, margins.refresh),
    )

    async def start() -> None:
        await database.migrate(MIGRATIONS)
        await store.open_system_accounts(microseconds(now()))
        await margins.start()
        await prices.start()
        await budgets.announce_all()
        await organisations.start(settings.auth_wait_s)
        for repeating in background:
            repeating.start()

    async def stop() -> None:
        for repeating in background:
            await repeating.stop()
        await organisations.stop()
        await database.close()

    server = BillingServer(settings, store, prices, margins, organisations, feed, now)
    price_server = PriceServer(prices, margins, price_store, now)
    tolerance = Tolerance(
        settings.reconciliation_tolerance_percent, settings.reconciliation_tolerance_credits
    )
    report_server = ReportServer(reports, tolerance, now)
    return Service(
        name="billing",
        interfaces=[
            (BillingService, server),
            (LedgerService, LedgerServer(store, now)),
            (PriceService, price_server),
            (ReportService, report_server),
            (BudgetService, BudgetServer(budgets, settings.lease_ttl_s, now)),
        ],
        start=start,
        stop=stop,
        check=database.ping,
    )
