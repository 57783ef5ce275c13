"""Billing for tests: the service over a real database, and a list of organisations to follow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from omnihub.auth.v1 import auth_service_pb2, organisation_pb2
from omnihub.auth.v1.auth_service_api import AuthService
from omnihub.billing.v1.billing_service_api import BillingService
from omnihub.billing.v1.usage_pb2 import Charge
from omnihub.common.v1.change_pb2 import Change

from services.billing.app import MIGRATIONS, build
from services.billing.domain.grant import Grant
from services.billing.domain.ledger import REVENUE, wallet_of
from services.billing.settings import BillingSettings, PriceSettings
from services.billing.store import Store
from services.billing.store.tables import account, hold, lease, ledger_entry, usage_event
from services.common.db import Database
from services.common.rpc import Call, Connector, Identity, Registry, RpcError
from services.common.rpc.method import methods_of
from services.common.rpc.server import GrpcServer
from services.common.service import Infrastructure
from services.credits.money import NANO
from tests.support.postgresql import free_port

SECOND = 1_000_000
ORGANISATION = "org_a"


class Directory:
    """The part of the auth service that billing follows: who exists."""

    def __init__(self, *organisation_ids: str, bootstrap: str = "") -> None:
        self.organisations: list[organisation_pb2.Organisation] = []
        self.fails = False
        for organisation_id in organisation_ids:
            self.add(organisation_id, bootstrap=organisation_id == bootstrap)
        for method in methods_of(AuthService.DESCRIPTOR):
            if not hasattr(self, method.name):
                setattr(self, method.name, _not_served)

    def add(self, organisation_id: str, bootstrap: bool = False) -> None:
        self.organisations.append(
            organisation_pb2.Organisation(organisation_id=organisation_id, bootstrap=bootstrap)
        )

    async def sync_organisations(
        self, request: auth_service_pb2.SyncOrganisationsRequest, call: Call
    ) -> auth_service_pb2.SyncOrganisationsResponse:
        if self.fails:
            raise RpcError("UNAVAILABLE", "auth is starting")
        return auth_service_pb2.SyncOrganisationsResponse(
            organisations=self.organisations[request.after_seq :], seq=len(self.organisations)
        )

    async def watch_changes(
        self, request: auth_service_pb2.WatchChangesRequest, call: Call
    ) -> AsyncIterator[auth_service_pb2.WatchChangesResponse]:
        seen = request.after_seq
        while True:
            fresh = self.organisations[seen:]
            changes = [
                Change(seq=seen + number, topic="organisation", key=organisation.organisation_id)
                for number, organisation in enumerate(fresh, 1)
            ]
            seen += len(fresh)
            yield auth_service_pb2.WatchChangesResponse(changes=changes, seq=seen)
            await asyncio.sleep(0.02)


async def _not_served(request: Any, call: Call) -> Any:
    raise RpcError("NOT_IMPLEMENTED", "this is only a list of organisations")


class Gate:
    """Identity tokens of tests are the organisation's id."""

    async def authenticate(self, credential: str) -> Identity:
        raise RpcError("INVALID_CREDENTIAL", "no keys here")

    async def verify(self, token: str) -> Identity:
        return Identity(organisation_id=token, scopes=frozenset({"usage", "platform"}), token=token)


def call_of(organisation_id: str = ORGANISATION) -> Call:
    scopes = frozenset({"usage", "platform"})
    return Call("req_test", Identity(organisation_id=organisation_id, scopes=scopes, token=organisation_id))


@asynccontextmanager
async def running_connector(
    database_url: str,
    data_dir: Path,
    directory: Directory,
    settings: BillingSettings | None = None,
    *,
    transport: str = "local",
    bootstrap_credits: Decimal = Decimal(100),
    configured_prices: Mapping[str, PriceSettings] | None = None,
) -> AsyncIterator[Connector]:
    """Start billing as the launcher does and yield what connects to its interfaces."""
    registry = Registry()
    registry.add(AuthService, directory)
    infrastructure = Infrastructure(
        connector=Connector(registry, {}), data_dir=data_dir, database_url=database_url
    )
    service = build(
        settings or BillingSettings(),
        infrastructure,
        bootstrap_credits=bootstrap_credits,
        configured_prices=configured_prices or {},
    )
    peers = {}
    listen = f"127.0.0.1:{free_port()}"
    server = GrpcServer(listen, Gate())
    for interface, implementation in service.interfaces:
        registry.add(interface, implementation)
        server.add(interface, implementation)
    if transport == "grpc":
        peers["billing"] = listen
    connector = Connector(registry, peers)
    try:
        await service.start()
        await server.start()
        yield connector
    finally:
        await connector.close()
        await server.stop(0)
        await service.stop()


@asynccontextmanager
async def running_billing(*arguments: Any, **named: Any) -> AsyncIterator[BillingService]:
    """Start billing as the launcher does and yield a client of it."""
    async with running_connector(*arguments, **named) as connector:
        yield connector.connect(BillingService, "billing")


@asynccontextmanager
async def open_store(database_url: str, store: type[Store] = Store) -> AsyncIterator[Store]:
    """Yield a store over a migrated database."""
    database = Database(database_url, "billing")
    await database.migrate(MIGRATIONS)
    opened = store(database)
    await opened.open_system_accounts(0)
    try:
        yield opened
    finally:
        await database.close()


async def fund(store: Store, credits: str, organisation_id: str = ORGANISATION) -> None:
    """Open an account with credits."""
    amount = int(Decimal(credits) * NANO)
    await store.welcome([Grant(f"grant:free:{organisation_id}", organisation_id, amount)], 0)


def charge(charge_id: str, amount: int, organisation_id: str = ORGANISATION, **fields: Any) -> Charge:
    return Charge(charge_id=charge_id, organisation_id=organisation_id, amount_nano_credits=amount, **fields)


def day(number: int) -> datetime:
    return datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(days=number)


@dataclass(frozen=True)
class Books:
    """Everything that must add up, read in one snapshot."""

    accounts: dict[str, tuple[int, int, int]]
    entries: dict[str, int]
    unbalanced: list[str]
    held: dict[str, int]
    leased: dict[str, int]
    charged: dict[str, int]
    charged_entries: dict[str, int]


async def read_books(store: Store) -> Books:
    """Recompute every projection from what it stands for."""
    rest = sa.case((lease.c.granted > lease.c.spent, lease.c.granted - lease.c.spent), else_=0)
    async with store.database.reading() as connection:

        async def sums(query: sa.Select[Any]) -> dict[str, int]:
            return {row[0]: int(row[1]) for row in await connection.execute(query)}

        accounts = await connection.execute(
            sa.select(account.c.id, account.c.posted, account.c.held, account.c.leased)
        )
        entry_sum = sa.func.sum(ledger_entry.c.amount)
        unbalanced = await connection.scalars(
            sa.select(ledger_entry.c.transaction_id)
            .group_by(ledger_entry.c.transaction_id)
            .having(entry_sum != 0)
        )
        return Books(
            accounts={row.id: (row.posted, row.held, row.leased) for row in accounts},
            entries=await sums(
                sa.select(ledger_entry.c.account_id, entry_sum).group_by(ledger_entry.c.account_id)
            ),
            unbalanced=list(unbalanced),
            held=await sums(
                sa.select(hold.c.account_id, sa.func.sum(hold.c.amount))
                .where(hold.c.state == "open")
                .group_by(hold.c.account_id)
            ),
            leased=await sums(
                sa.select(lease.c.account_id, sa.func.sum(rest))
                .where(lease.c.state == "open")
                .group_by(lease.c.account_id)
            ),
            charged=await sums(
                sa.select(usage_event.c.transaction_id, sa.func.sum(usage_event.c.amount)).group_by(
                    usage_event.c.transaction_id
                )
            ),
            charged_entries=await sums(
                sa.select(ledger_entry.c.transaction_id, ledger_entry.c.amount).where(
                    ledger_entry.c.account_id == REVENUE
                )
            ),
        )


async def assert_books_balance(store: Store) -> Books:
    """Assert the invariants: zero sums, projections equal to what they stand for, one charge per effect."""
    books = await read_books(store)
    assert books.unbalanced == []
    for account_id, (posted, held, leased) in books.accounts.items():
        assert posted == books.entries.get(account_id, 0), account_id
        assert held == books.held.get(account_id, 0), account_id
        assert leased == books.leased.get(account_id, 0), account_id
    assert books.charged == books.charged_entries
    return books


async def wallet(store: Store, organisation_id: str = ORGANISATION) -> tuple[int, int, int]:
    """Return (posted, held, leased)."""
    return (await read_books(store)).accounts[wallet_of(organisation_id)]
