"""Booking over both databases: once, exactly, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from omnihub.billing.v1.usage_pb2 import Charge, ProviderAttempt
from omnihub.common.v1.chat_pb2 import Usage

from services.billing.domain.errors import IdempotencyKeyReusedError, InvalidFieldError, NotFoundError
from services.billing.domain.grant import Grant
from services.billing.domain.ledger import LARGEST_AMOUNT
from services.billing.domain.usage import Period, microseconds
from services.billing.store import Store, postings, settlement
from services.billing.store.tables import ledger_entry, ledger_transaction, metadata, usage_event
from services.billing.store.usage import UsageSum, event_row
from tests.support.billing import (
    ORGANISATION,
    SECOND,
    Books,
    assert_books_balance,
    charge,
    day,
    fund,
    open_store,
    read_books,
    wallet,
)

TTL = 60 * SECOND
EVER = Period(None, None)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as opened:
        yield opened


async def test_a_charge_is_booked_once_however_often_it_comes(store: Store) -> None:
    await fund(store, "1")
    batch = [charge(f"c{number}", 10) for number in range(100)]
    booked = await asyncio.gather(*(store.settle(batch[start:], 0) for start in (0, 50, 0, 99)))
    assert sum(booked) == 100
    assert await store.settle([*batch, *batch], 0) == 0
    assert await store.settle([], 0) == 0
    assert await wallet(store) == (10**9 - 1000, 0, 0)
    await assert_books_balance(store)


async def test_a_charge_twice_in_one_batch_is_one_charge(store: Store) -> None:
    await fund(store, "1")
    assert await store.settle([charge("c", 10), charge("c", 10)], 0) == 1
    assert await wallet(store) == (10**9 - 10, 0, 0)


def full_charge(**other: Any) -> Charge:
    """Return a charge with something in every kind of field."""
    fields: dict[str, Any] = {
        "lease_id": "l",
        "request_id": "req",
        "provider": "wall",
        "model": "wall/m",
        "latency_ms": 4,
        "cost_nano_credits": 8,
        "savings_nano_credits": 3,
        "usage": Usage(input_total=5, output_total=6),
        "attempts": [ProviderAttempt(provider="wall", id="a")],
        "at": Timestamp(seconds=77),
        **other,
    }
    return charge("c", fields.pop("amount_nano_credits", 10), **fields)


async def what_is_booked(store: Store) -> Books:
    """Return the books without accounts that nothing was booked to: a provider's are opened beforehand."""
    books = await read_books(store)
    return replace(books, accounts={name: sums for name, sums in books.accounts.items() if any(sums)})


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"amount_nano_credits": 11}, "amount"),
        ({"lease_id": ""}, "lease_id"),
        ({"hold_id": "h"}, "hold_id"),
        ({"provider": "hill"}, "provider"),
        ({"cost_nano_credits": 9}, "cost"),
        ({"usage": Usage(input_total=5, output_total=7)}, "output_total"),
        ({"attempts": []}, "rating"),
        ({"at": Timestamp(seconds=78)}, "at"),
    ],
)
async def test_a_known_charge_with_other_content_is_refused(
    store: Store, other: dict[str, Any], named: str
) -> None:
    await fund(store, "1")
    await store.acquire_lease("l", ORGANISATION, "process", 100, 1, TTL, 0)
    assert await store.settle([full_charge()], 0) == 1
    before = await what_is_booked(store)
    for batch in ([full_charge(**other)], [charge("a", 1), full_charge(**other), charge("z", 1)]):
        with pytest.raises(IdempotencyKeyReusedError, match=rf"the charge c .*\b{named}\b"):
            await store.settle(batch, 0)
        assert await what_is_booked(store) == before
    # The repetition itself comes later, when its lease has ended.
    await store.close_lease("l")
    assert await store.settle([full_charge(), full_charge()], 5) == 0
    await assert_books_balance(store)


async def test_a_charge_without_a_time_may_come_again_at_another(store: Store) -> None:
    assert await store.settle([charge("c", 10)], 0) == 1
    assert await store.settle([charge("c", 10)], microseconds(day(9))) == 0


async def test_one_id_for_two_charges_of_a_batch_is_refused(store: Store) -> None:
    before = await what_is_booked(store)
    with pytest.raises(IdempotencyKeyReusedError, match="the charge c "):
        await store.settle([charge("c", 10), charge("d", 1), charge("c", 11)], 0)
    assert await what_is_booked(store) == before


async def test_of_two_contents_for_one_id_at_once_one_is_booked(store: Store) -> None:
    batches = [[charge(f"c{number}", amount) for number in range(30)] for amount in (5, 6)]
    answers = await asyncio.gather(*(store.settle(batch, 0) for batch in batches), return_exceptions=True)
    assert sorted(map(str, answers), key=len)[0] == "30"
    assert sum(isinstance(answer, IdempotencyKeyReusedError) for answer in answers) == 1
    await assert_books_balance(store)


@pytest.mark.parametrize("form", [0, 1])
async def test_what_an_older_version_has_booked_may_come_again(
    store: Store, form: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its events have nothing in the columns that were added since."""
    monkeypatch.setattr(postings, "FORMAT", form)
    monkeypatch.setattr(settlement, "FORMAT", 1)
    made, later = full_charge(), ("rating", "project_id") if form else ("rating", "project_id", "cost")

    def row_of(*arguments: Any) -> Any:
        named = dict(zip(usage_event.c.keys(), event_row(*arguments), strict=True))
        nothing = {name: 0 if name == "cost" else "" for name in later}
        return tuple({**named, **nothing}.values())

    monkeypatch.setattr(settlement, "event_row", row_of)
    assert await store.settle([made], 0) == 1
    monkeypatch.setattr(settlement, "event_row", event_row)
    assert await store.settle([made], 0) == 0
    with pytest.raises(IdempotencyKeyReusedError):
        await store.settle([full_charge(amount_nano_credits=11)], 0)


async def test_a_batch_of_several_organisations(store: Store) -> None:
    await fund(store, "1", "org_a")
    await fund(store, "2", "org_b")
    batch = [charge("1", 5, "org_b"), charge("2", 7, "org_a"), charge("3", 0, "org_a")]
    assert await store.settle(batch, 0) == 3
    books = await assert_books_balance(store)
    assert books.accounts["wallet:org_a"][0] == 10**9 - 7
    assert books.accounts["wallet:org_b"][0] == 2 * 10**9 - 5
    assert books.posted("revenue.usage") == 12


async def test_usage_is_never_dropped(store: Store) -> None:
    await fund(store, "0.000001")
    await store.create_hold("released", ORGANISATION, 100, TTL, 0)
    await store.release_hold("released")
    await store.create_hold("expired", ORGANISATION, 100, 1, 0)
    await store.expire_holds(5)
    await store.acquire_lease("closed", ORGANISATION, "p", 100, 100, TTL, 0)
    await store.close_lease("closed")
    late = [
        charge("1", 300, hold_id="released"),
        charge("2", 300, hold_id="expired"),
        charge("3", 300, lease_id="closed"),
        charge("4", 300, lease_id="unknown"),
        charge("5", 300, "org_never_heard_of", hold_id="unknown"),
    ]
    assert await store.settle([*late, charge("6", 1)], 0) == 6
    # What a provider has already charged may take the balance below zero.
    assert await wallet(store) == (-201, 0, 0)
    assert await wallet(store, "org_never_heard_of") == (-300, 0, 0)
    async with store.database.reading() as connection:
        marked = await connection.scalars(sa.select(usage_event.c.id).where(usage_event.c.late))
        assert sorted(marked) == ["1", "2", "3", "4", "5"]
    await assert_books_balance(store)
    # Its first credits still come, once.
    await fund(store, "1", "org_never_heard_of")
    await fund(store, "1", "org_never_heard_of")
    assert await wallet(store, "org_never_heard_of") == (10**9 - 300, 0, 0)


async def test_captures_release_the_rest_and_book_what_is_above(store: Store) -> None:
    await fund(store, "0.000001")
    await store.create_hold("partial", ORGANISATION, 300, TTL, 0)
    await store.create_hold("over", ORGANISATION, 300, TTL, 0)
    await store.settle([charge("1", 100, hold_id="partial"), charge("2", 450, hold_id="over")], 0)
    assert await wallet(store) == (450, 0, 0)
    await store.release_hold("partial")
    assert await store.expire_holds(TTL * 2) == 0
    assert await wallet(store) == (450, 0, 0)
    await assert_books_balance(store)


async def test_a_lease_that_is_overdrawn_takes_the_rest_from_the_balance(store: Store) -> None:
    await fund(store, "0.000001")
    await store.acquire_lease("l", ORGANISATION, "p", 300, 300, TTL, 0)
    await store.settle([charge("1", 200, lease_id="l")], 0)
    assert await wallet(store) == (800, 0, 100)
    await store.settle([charge("2", 200, lease_id="l"), charge("3", 50, lease_id="l")], 0)
    assert await wallet(store) == (550, 0, 0)
    assert await store.close_lease("l") == 0
    await assert_books_balance(store)


async def test_names_of_any_length_and_kind_are_booked(store: Store) -> None:
    odd = charge("c", 1, model="m" * 5000, task="a\0b", provider="\ud7ff\u20ac", state="x" * 100)
    odd.usage.CopyFrom(Usage(input_total=2**32 - 1, provider_cost="1" * 500))
    assert await store.settle([odd], 0) == 1
    groups, _ = await store.usage(ORGANISATION, EVER, "task", None, 10)
    assert groups == [UsageSum("ab", 1, 2**32 - 1, 0, 1, 0, cost=1)]


async def test_what_is_booked_cannot_be_changed(store: Store) -> None:
    await fund(store, "1")
    await store.settle([charge("c", 5)], 0)
    for statement in (
        sa.update(usage_event).values(amount=5),
        sa.delete(usage_event),
        sa.update(ledger_entry).values(amount=5),
        sa.delete(ledger_entry),
        sa.update(ledger_transaction).values(kind="gift"),
        sa.delete(ledger_transaction),
    ):
        with pytest.raises(sa.exc.DBAPIError, match="immutable"):
            async with store.database.transaction() as connection:
                await connection.execute(statement)
    await assert_books_balance(store)


async def test_a_transaction_that_does_not_sum_to_zero_is_not_written(store: Store) -> None:
    await fund(store, "1")
    before = await read_books(store)
    with pytest.raises(AssertionError, match="sum to zero"):
        async with store.database.transaction() as connection:
            await store._book_entries(
                connection, [("t", "wallet.promo:org_a", 5), ("t", "revenue.usage", -4)]
            )
    assert await read_books(store) == before


async def test_a_grant_is_booked_once(store: Store) -> None:
    await fund(store, "1")
    grant = Grant("grant:admin:k", ORGANISATION, 500, "thanks", "user_1")
    await asyncio.gather(*(store.grant(grant, 0) for _ in range(10)))
    assert (await store.grant(grant, 9)).posted == 10**9 + 500
    for other in (
        Grant(grant.id, ORGANISATION, 501, "thanks"),
        Grant(grant.id, ORGANISATION, 500, "other"),
    ):
        with pytest.raises(IdempotencyKeyReusedError):
            await store.grant(other, 0)
    with pytest.raises(NotFoundError):
        await store.grant(Grant("grant:admin:n", "org_unknown", 5), 0)
    books = await assert_books_balance(store)
    assert books.posted("promo_expense") == -(10**9) - 500


async def test_no_balance_grows_beyond_what_can_be_counted(store: Store) -> None:
    await fund(store, "999999999")
    with pytest.raises(InvalidFieldError, match="amount"):
        await store.grant(Grant("grant:admin:k", ORGANISATION, 2 * 10**9), 0)
    # Nothing was booked, so a smaller grant may use the key.
    assert (await store.grant(Grant("grant:admin:k", ORGANISATION, 10**9), 0)).posted == LARGEST_AMOUNT


async def test_organisations_are_welcomed_once_by_any_number_of_replicas(store: Store) -> None:
    grants = [Grant(f"grant:free:org_{n}", f"org_{n}", 100) for n in range(50)]
    grants.append(Grant("grant:free:org_poor", "org_poor", 0))
    await asyncio.gather(store.welcome(grants, 0), store.welcome(grants[::-1], 0), store.welcome(grants, 0))
    # A setting that is raised later is for organisations that come later.
    await store.welcome([Grant("grant:free:org_poor", "org_poor", 7)], 0)
    books = await assert_books_balance(store)
    assert books.accounts["wallet:org_poor"] == (0, 0, 0)
    assert books.posted("promo_expense") == -5000


async def test_usage_is_summed_exactly_by_any_group(store: Store) -> None:
    models = ["openai/gpt-4o", "anthropic/claude", "local/echo"]
    batch = []
    for number in range(30):
        at = Timestamp()
        at.FromDatetime(day(number % 3))
        batch.append(
            charge(
                f"c{number}",
                333_333_333 + number,
                model=models[number % 3],
                provider=models[number % 3].partition("/")[0],
                key_id=f"key_{number % 2}",
                task="chat",
                at=at,
                usage=Usage(input_total=10, output_total=number),
                savings_nano_credits=-number,
            )
        )
    batch.append(charge("foreign", 10**15, "org_b", model="openai/gpt-4o"))
    await store.settle(batch, microseconds(day(9)))
    groups, total = await store.usage(ORGANISATION, EVER, "model", None, 10)
    assert [sums.group for sums in groups] == sorted(models)
    paid = 30 * 333_333_333 + 435
    assert total == UsageSum("", 30, 300, 435, paid, -435, cost=paid, savings_routing=-435)
    assert sum(sums.amount for sums in groups) == total.amount
    for group_by, expected in (
        ("provider", ["anthropic", "local", "openai"]),
        ("key", ["key_0", "key_1"]),
        ("agent", [""]),
        ("task", ["chat"]),
        ("day", ["2026-01-01", "2026-01-02", "2026-01-03"]),
    ):
        groups, _ = await store.usage(ORGANISATION, EVER, group_by, None, 10)
        assert [sums.group for sums in groups] == expected
    second_day = Period(microseconds(day(1)), microseconds(day(2)))
    groups, total = await store.usage(ORGANISATION, second_day, "day", None, 10)
    assert [(sums.group, sums.requests) for sums in groups] == [("2026-01-02", 10)]
    assert total.requests == 10
    groups, total = await store.usage(ORGANISATION, EVER, "model", sorted(models)[0], 1)
    assert [sums.group for sums in groups] == [sorted(models)[1]]
    assert total.requests == 30
    groups, total = await store.usage("org_unknown", EVER, "", None, 10)
    assert (groups, total) == ([], UsageSum("", 0, 0, 0, 0, 0))


@pytest.mark.new_database
async def test_the_migrations_make_the_tables_the_code_speaks_of(store: Store) -> None:
    def read(connection: sa.Connection) -> dict[str, dict[str, bool]]:
        inspector = sa.inspect(connection)
        schema = None if store.database.sqlite else store.database.schema
        return {
            table: {column["name"]: column["nullable"] for column in inspector.get_columns(table, schema)}
            for table in metadata.tables
        }

    async with store.database.reading() as connection:
        found = await connection.run_sync(read)
    assert found == {
        name: {column.name: bool(column.nullable) for column in table.c}
        for name, table in metadata.tables.items()
    }
