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
from services.billing.domain.accounts import FAMILY, account_of, wallet_of
from services.billing.domain.grant import Grant
from services.billing.settings import BillingSettings, PriceSettings
from services.billing.store import Store
from services.billing.store.checks import check_ledger
from services.billing.store.tables import (
    account,
    credit_grant,
    grant_movement,
    hold,
    lease,
    ledger_block,
    ledger_entry,
    ledger_seal,
    ledger_transaction,
    usage_event,
)
from services.common.db import Database
from services.common.rpc import Call, Connector, Identity, Registry, RpcError
from services.common.rpc.method import methods_of
from services.common.rpc.server import GrpcServer
from services.common.service import Infrastructure
from services.credits.money import NANO
from tests.support.ports import free_port

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
async def running_billing(
    database_url: str,
    data_dir: Path,
    directory: Directory,
    settings: BillingSettings | None = None,
    **options: Any,
) -> AsyncIterator[BillingService]:
    """Start billing as the launcher does and yield a client of it; options as of `billing_connector`."""
    async with billing_connector(database_url, data_dir, directory, settings, **options) as connector:
        yield connector.connect(BillingService, "billing")


@asynccontextmanager
async def billing_connector(
    database_url: str,
    data_dir: Path,
    directory: Directory,
    settings: BillingSettings | None = None,
    *,
    transport: str = "local",
    bootstrap_credits: Decimal = Decimal(100),
    configured_prices: Mapping[str, PriceSettings] | None = None,
) -> AsyncIterator[Connector]:
    """Start billing as the launcher does and yield what connects to its services."""
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


GUARDED = (ledger_entry, ledger_transaction, grant_movement, ledger_block, ledger_seal, usage_event)


async def tamper(store: Store, *statements: Any) -> None:
    """Change what is booked as somebody with the database's password would."""
    async with store.database.transaction() as connection:
        if store.database.sqlite:
            for table in GUARDED:
                for verb in ("update", "delete"):
                    await connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table.name}_no_{verb}")
        else:
            # Its triggers do not fire in this transaction.
            await connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for statement in statements:
            await connection.execute(statement)


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
    remaining: dict[str, int]
    """Of each grant."""
    moved: dict[str, int]
    """By grant: planned - released + reopened - expired and so on."""

    @property
    def total(self) -> int:
        """Return the sum of all accounts; wallets are sums of others."""
        return sum(row[0] for name, row in self.accounts.items() if not name.startswith("wallet:"))

    def posted(self, account_id: str) -> int:
        """Return the balance of an account, 0 when there is none."""
        return self.accounts.get(account_id, (0, 0, 0))[0]


async def read_books(store: Store) -> Books:
    """Recompute every projection from what it stands for."""
    rest = sa.case((lease.c.granted > lease.c.spent, lease.c.granted - lease.c.spent), else_=0)
    raises = grant_movement.c.kind.in_(("plan", "reopen", "uncover"))
    signed = sa.case((raises, grant_movement.c.amount), else_=-grant_movement.c.amount)
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
                sa.select(ledger_entry.c.transaction_id, -entry_sum)
                .join(account, account.c.id == ledger_entry.c.account_id)
                .join(ledger_transaction, ledger_transaction.c.id == ledger_entry.c.transaction_id)
                .where(account.c.kind.in_(FAMILY), ledger_transaction.c.kind == "charges")
                .group_by(ledger_entry.c.transaction_id)
            ),
            remaining=await sums(sa.select(credit_grant.c.id, credit_grant.c.remaining)),
            moved=await sums(
                sa.select(grant_movement.c.grant_id, sa.func.sum(signed)).group_by(grant_movement.c.grant_id)
            ),
        )


async def assert_books_balance(store: Store, *, check: bool = True) -> Books:
    """Assert the invariants: zero sums, projections equal to what they stand for, one charge per effect.

    With `check` the ledger's own checker must agree.
    """
    books = await read_books(store)
    assert books.unbalanced == []  # I1
    assert books.total == 0  # I1
    for account_id, (posted, held, leased) in books.accounts.items():  # I2
        if account_id.startswith("wallet:"):
            organisation_id = account_id.partition(":")[2]
            assert posted == sum(books.posted(account_of(kind, organisation_id)) for kind in FAMILY), (
                account_id
            )
        else:
            assert posted == books.entries.get(account_id, 0), account_id
        assert held == books.held.get(account_id, 0), account_id
        assert leased == books.leased.get(account_id, 0), account_id
    charged = {transaction_id: amount for transaction_id, amount in books.charged.items() if amount}
    assert charged == {name: amount for name, amount in books.charged_entries.items() if amount}  # I8
    assert books.remaining == books.moved  # I10
    assert all(remaining >= 0 for remaining in books.remaining.values())  # I10
    if check:
        report = await asyncio.to_thread(check_ledger, store.database)
        assert report.differences == []
    return books


async def wallet(store: Store, organisation_id: str = ORGANISATION) -> tuple[int, int, int]:
    """Return (posted, held, leased)."""
    return (await read_books(store)).accounts[wallet_of(organisation_id)]
