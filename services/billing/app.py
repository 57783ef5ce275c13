"""The only wiring of billing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from omnihub.auth.v1.auth_service_api import AuthService
from omnihub.auth.v1.organisation_pb2 import Organisation
from omnihub.billing.v1.billing_service_api import BillingService

from services.billing.background import Repeating
from services.billing.domain.grant import Grant, welcome_grant
from services.billing.domain.price_book import PriceBook
from services.billing.domain.usage import microseconds
from services.billing.media_prices import MediaPriceList, read_entries
from services.billing.organisations import Organisations
from services.billing.price_list import GenaiPriceList
from services.billing.prices import Prices, configured_book
from services.billing.server import SECOND, BillingServer
from services.billing.settings import BillingSettings, PriceSettings
from services.billing.store import Store
from services.billing.store.tables import changes
from services.billing.sweeper import Sweeper
from services.common.change_feed import ChangeFeed
from services.common.clock import now
from services.common.service import Infrastructure, Service
from services.credits.money import NANO

MIGRATIONS = Path(__file__).with_name("migrations")
# How often organisations are looked for without news of them.
SYNC_S = 60.0


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
    prices = Prices(book, database, feed)
    bootstrap, free = int(bootstrap_credits * NANO), int(settings.free_credits * NANO)

    def first_grant(organisation: Organisation) -> Grant:
        return welcome_grant(organisation.organisation_id, organisation.bootstrap, bootstrap, free)

    async def welcome(grants: Sequence[Grant]) -> None:
        await store.welcome(grants, microseconds(now()))

    auth = infrastructure.connector.connect(AuthService, "auth")
    organisations = Organisations(auth, first_grant, welcome)
    sweeper = Sweeper(store, settings.lease_abandoned_after_s * SECOND, now)
    background = (
        Repeating("billing-sweep", settings.sweep_interval_s, sweeper.sweep),
        Repeating("billing-organisations", SYNC_S, organisations.sync, organisations.news),
        Repeating("billing-prices", settings.price_check_interval_s, prices.check),
    )

    async def start() -> None:
        await database.migrate(MIGRATIONS)
        await store.open_system_accounts(microseconds(now()))
        await prices.announce_all()
        await organisations.start(settings.auth_wait_s)
        for repeating in background:
            repeating.start()

    async def stop() -> None:
        for repeating in background:
            await repeating.stop()
        await organisations.stop()
        await database.close()

    server = BillingServer(settings, store, prices, organisations, feed, now)
    return Service(
        name="billing",
        interfaces=[(BillingService, server)],
        start=start,
        stop=stop,
        check=database.ping,
    )
