"""Grants, corrections and closed accounts over both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from services.billing.domain.correction import Request
from services.billing.domain.errors import (
    AccountClosedError,
    IdempotencyKeyReusedError,
    InFlightBudgetExhaustedError,
    InvalidFieldError,
    NotFoundError,
)
from services.billing.domain.grant import ALLOWANCE, PAID, PRIORITIES, PROMO, Grant
from services.billing.store import Store
from services.billing.store.tables import audit, grant_movement, ledger_transaction
from tests.support.billing import (
    ORGANISATION,
    SECOND,
    assert_books_balance,
    charge,
    fund,
    open_store,
    wallet,
)

TTL = 60 * SECOND


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as opened:
        await fund(opened, "0")
        yield opened


async def give(
    store: Store, name: str, amount: int, kind: str = PROMO, expires_at: int | None = None, now: int = 0
) -> int:
    grant = Grant(name, ORGANISATION, amount, kind=kind, priority=PRIORITIES[kind], expires_at=expires_at)
    return (await store.grant(grant, now)).posted


async def left(store: Store) -> dict[str, int]:
    return (await assert_books_balance(store)).remaining


async def test_grants_are_used_up_in_order(store: Store) -> None:
    await give(store, "paid", 100, PAID)
    await give(store, "late", 100, PROMO, 900)
    await give(store, "never", 100, PROMO)
    await give(store, "soon", 100, PROMO, 500)
    await give(store, "allowance", 100, ALLOWANCE, 9000)
    await store.settle([charge("1", 150)], 1)
    assert await left(store) == {"allowance": 0, "soon": 50, "late": 100, "never": 100, "paid": 100}
    await store.settle([charge("2", 300)], 1)
    assert await left(store) == {"allowance": 0, "soon": 0, "late": 0, "never": 0, "paid": 50}
    books = await assert_books_balance(store)
    assert (books.posted("wallet.paid:org_a"), books.posted("wallet.promo:org_a")) == (50, 0)
    assert (books.posted("clearing.manual"), books.posted("promo_expense")) == (-100, -400)


async def test_what_expires_is_revenue_only_when_it_was_paid_for(store: Store) -> None:
    await give(store, "paid", 100, PAID, 500)
    await give(store, "promo", 100, PROMO, 500)
    await store.settle([charge("1", 130)], 1)
    assert await store.expire_grants(499) == 0
    swept = await asyncio.gather(*(store.expire_grants(500) for _ in range(4)))
    assert max(swept) == 1
    assert await store.expire_grants(500) == 0
    books = await assert_books_balance(store)
    assert books.posted("revenue.breakage") == 70
    assert books.posted("promo_expense") == -100
    assert await wallet(store) == (0, 0, 0)
    assert await _movements(store) == {"plan": 200, "release": 130, "expire": 70}


async def _movements(store: Store) -> dict[str, int]:
    query = sa.select(grant_movement.c.kind, sa.func.sum(grant_movement.c.amount)).group_by(
        grant_movement.c.kind
    )
    async with store.database.reading() as connection:
        return {row[0]: int(row[1]) for row in await connection.execute(query)}


async def test_an_expired_grant_does_not_pay_even_before_it_is_swept(store: Store) -> None:
    await give(store, "old", 100, PROMO, 500)
    await store.settle([charge("1", 40)], 500)
    books = await assert_books_balance(store)
    assert books.posted("receivable:org_a") == -40
    assert await left(store) == {"old": 0}


async def test_what_running_requests_reserved_does_not_expire_under_them(store: Store) -> None:
    await give(store, "old", 100, PROMO, 500)
    await store.create_hold("h", ORGANISATION, 60, TTL, 0)
    await store.expire_grants(500)
    assert await wallet(store) == (60, 60, 0)
    # Nothing more can go now, so the sweep does not come back to it again and again.
    assert await store.expire_grants(500) == 0
    await store.settle([charge("1", 25, hold_id="h")], 501)
    assert await wallet(store) == (35, 0, 0)
    await store.expire_grants(502)
    assert await wallet(store) == (0, 0, 0)
    assert await _movements(store) == {"plan": 100, "release": 25, "expire": 75}


async def test_a_new_grant_pays_what_is_owed_first(store: Store) -> None:
    await store.settle([charge("1", 70)], 0)
    assert await wallet(store) == (-70, 0, 0)
    assert await give(store, "small", 50, PAID) == -20
    assert await give(store, "large", 100, PAID) == 80
    assert await left(store) == {"small": 0, "large": 80}
    books = await assert_books_balance(store)
    assert books.posted("receivable:org_a") == 0


async def test_an_allowance_is_given_once_for_each_period(store: Store) -> None:
    for _ in range(2):
        answer = await store.grant_allowance(ORGANISATION, "2026-01", 500, 900, 0)
        assert answer.posted == 500
    # The stored answer, not what is there now.
    await give(store, "more", 100)
    assert (await store.grant_allowance(ORGANISATION, "2026-01", 500, 900, 5)).posted == 500
    with pytest.raises(IdempotencyKeyReusedError):
        await store.grant_allowance(ORGANISATION, "2026-01", 501, 900, 0)
    with pytest.raises(InvalidFieldError, match="expires_at"):
        await store.grant_allowance(ORGANISATION, "2025-12", 500, 10, 10)
    with pytest.raises(InvalidFieldError, match="period"):
        await store.grant_allowance(ORGANISATION, "x" * 31, 500, 900, 0)
    with pytest.raises(NotFoundError):
        await store.grant_allowance("org_unknown", "2026-01", 500, 900, 0)
    assert await left(store) == {"grant:allowance:2026-01:org_a": 500, "more": 100}


async def test_a_refund_goes_back_where_it_came_from(store: Store) -> None:
    await give(store, "promo", 100, PROMO, 900)
    await give(store, "paid", 100, PAID)
    await store.settle([charge("a", 60), charge("b", 80)], 1)
    assert await left(store) == {"promo": 0, "paid": 60}
    first = await store.refund_charge(Request("r1", "b", 50, note="slow", actor="user_1"), 2)
    assert first == ("r1", 50, 110)
    # The last that paid gets it back first: 40 of the charge were paid credits.
    assert await left(store) == {"promo": 10, "paid": 100}
    assert await store.refund_charge(Request("r1", "b", 50, note="slow"), 3) == first
    assert await store.refund_charge(Request("r2", "b"), 3) == ("r2", 30, 140)
    assert await left(store) == {"promo": 40, "paid": 100}
    with pytest.raises(InvalidFieldError, match="nothing is left"):
        await store.refund_charge(Request("r3", "b"), 3)
    with pytest.raises(InvalidFieldError, match="at most"):
        await store.refund_charge(Request("r4", "a", 61), 3)
    with pytest.raises(IdempotencyKeyReusedError):
        await store.refund_charge(Request("r1", "b", 49, note="slow"), 3)
    with pytest.raises(NotFoundError):
        await store.refund_charge(Request("r5", "unknown"), 3)
    assert (await store.refund_charge(Request("r4", "a", 60), 3))[1] == 60
    assert await left(store) == {"promo": 100, "paid": 100}
    # What we owe the provider stays.
    assert (await assert_books_balance(store)).posted("payable.unknown") == 140
    assert await _audited(store) == [
        ("refund", "user_1", "b", "slow"),
        ("refund", "", "b", ""),
        ("refund", "", "a", ""),
    ]


async def _audited(store: Store) -> list[tuple[str, str, str, str]]:
    query = sa.select(audit.c.action, audit.c.actor, audit.c.subject, audit.c.note).order_by(audit.c.id)
    async with store.database.reading() as connection:
        return [tuple(row) for row in await connection.execute(query)]


async def test_a_refund_of_what_was_paid_on_credit_goes_to_who_paid_the_debt(store: Store) -> None:
    await store.settle([charge("a", 70)], 0)
    await give(store, "first", 40, PAID)
    await store.refund_charge(Request("r1", "a", 10), 1)
    assert await wallet(store) == (-20, 0, 0)
    await give(store, "second", 100, PROMO, 900)
    assert await left(store) == {"first": 0, "second": 80}
    await store.refund_charge(Request("r2", "a"), 1)
    # The second grant was the last to pay, then the first.
    assert await left(store) == {"first": 40, "second": 100}
    assert await wallet(store) == (140, 0, 0)


async def test_the_same_refund_at_once_happens_once(store: Store) -> None:
    await give(store, "g", 100)
    await store.settle([charge("a", 100)], 0)
    answers = await asyncio.gather(
        *(store.refund_charge(Request("r", "a", 60), 1) for _ in range(5)),
        *(store.refund_charge(Request(f"r{n}", "a", 30), 1) for n in range(3)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, InvalidFieldError) for answer in answers) == 2
    assert len({answer for answer in answers[:5] if isinstance(answer, tuple)}) <= 1
    refunded = 60 + 30 if not isinstance(answers[0], Exception) else 90
    assert await left(store) == {"g": refunded}


async def test_a_correction_reverses_and_books_anew(store: Store) -> None:
    await give(store, "promo", 100, PROMO, 900)
    await give(store, "paid", 100, PAID)
    booked = charge("a", 120, cost_nano_credits=90, provider="openai")
    await store.settle([booked], 1)
    corrected = await store.correct_charge(Request("k", "a", 30, 25, "wrong price", "user_1"), 2)
    assert corrected == ("k:again", 30, 170)
    assert await store.correct_charge(Request("k", "a", 30, 25, "wrong price"), 3) == corrected
    books = await assert_books_balance(store)
    assert books.remaining == {"promo": 70, "paid": 100}
    assert (books.posted("revenue.usage"), books.posted("payable.openai")) == (30, 25)
    assert books.posted("cogs.openai") == -25
    # Corrected again, without a new cost, and then refunded: always what holds now.
    await store.correct_charge(Request("k2", "a", 90), 4)
    assert (await store.refund_charge(Request("r", "a"), 5))[1:] == (90, 200)
    books = await assert_books_balance(store)
    assert (books.posted("revenue.usage"), books.posted("payable.openai")) == (0, 25)
    query = sa.select(ledger_transaction.c.refers_to).where(ledger_transaction.c.refers_to != "")
    async with store.database.reading() as connection:
        originals = set(await connection.scalars(query))
    assert len(originals) == 1
    with pytest.raises(IdempotencyKeyReusedError):
        await store.correct_charge(Request("k", "a", 31, 25, "wrong price"), 3)
    with pytest.raises(NotFoundError):
        await store.correct_charge(Request("k3", "unknown", 1), 3)


async def test_a_grant_given_by_mistake_is_taken_back(store: Store) -> None:
    await give(store, "mistake", 100, PAID)
    await store.settle([charge("a", 30)], 0)
    await store.create_hold("h", ORGANISATION, 50, TTL, 0)
    with pytest.raises(InFlightBudgetExhaustedError) as caught:
        await store.reverse_grant(Request("v", "mistake"), 1)
    assert caught.value.retry_after_s == 1.0
    await store.release_hold("h")
    for _ in range(2):
        assert await store.reverse_grant(Request("v", "mistake"), 1) == ("v", 70, 0)
    with pytest.raises(NotFoundError):
        await store.reverse_grant(Request("v2", "unknown"), 1)
    with pytest.raises(IdempotencyKeyReusedError):
        await store.reverse_grant(Request("v", "mistake", note="other"), 1)
    assert (await assert_books_balance(store)).posted("clearing.manual") == -30


async def test_a_closed_account_takes_nothing_new_but_late_usage(store: Store) -> None:
    await give(store, "g", 1000)
    await store.create_hold("h", ORGANISATION, 100, TTL, 0)
    await store.acquire_lease("running", ORGANISATION, "p", 100, 100, TTL, 0)
    assert await store.renew_leases(["running"], TTL, 1) == ["running"]
    assert await store.close_account(ORGANISATION, "user_1", "unpaid", 1)
    assert await store.renew_leases(["running"], TTL, 2) == []
    assert not await store.close_account(ORGANISATION, "user_1", "unpaid", 2)
    before = await assert_books_balance(store)
    for call in (
        store.create_hold("h2", ORGANISATION, 100, TTL, 1),
        store.extend_hold("h", 200, TTL, 1),
        store.acquire_lease("l", ORGANISATION, "p", 100, 1, TTL, 1),
        store.grant(Grant("k", ORGANISATION, 5), 1),
        store.grant_allowance(ORGANISATION, "2026-01", 5, 900, 1),
    ):
        with pytest.raises(AccountClosedError, match="reopen") as caught:
            await call
        assert caught.value.reason == "ACCOUNT_CLOSED"
    assert await assert_books_balance(store) == before
    await store.settle([charge("1", 40, hold_id="h"), charge("2", 5, lease_id="running")], 2)
    assert await store.close_lease("running") == 95
    assert await wallet(store) == (955, 0, 0)
    assert await store.reopen_account(ORGANISATION, "user_1", "", 3)
    with pytest.raises(AccountClosedError):
        # The refused id stays refused; what was not refused for ever works again.
        await store.create_hold("h2", ORGANISATION, 100, TTL, 3)
    await store.create_hold("h3", ORGANISATION, 100, TTL, 3)
    assert (await store.grant(Grant("k", ORGANISATION, 5), 3)).posted == 960
    for act in (store.close_account, store.reopen_account):
        with pytest.raises(NotFoundError):
            await act("org_unknown", "user_1", "", 3)
    assert [row[0] for row in await _audited(store)] == ["account.closed", "account.open"]


async def test_costs_and_rounding_have_accounts_of_their_own(store: Store) -> None:
    await give(store, "g", 10_000)
    await store.settle(
        [
            charge("1", 100, provider="openai", cost_nano_credits=80, rounding_pico_credits=600),
            charge("2", 100, provider="x" * 300, cost_nano_credits=0, rounding_pico_credits=999),
            charge("3", 100, provider="local", currency="USD"),
        ],
        0,
    )
    books = await assert_books_balance(store)
    assert (books.posted("cogs.openai"), books.posted("payable.openai")) == (-80, 80)
    # Who does not say what it cost us took the price.
    assert books.posted("payable.local") == 100
    assert (books.posted("rounding"), books.posted("revenue.usage")) == (1, 299)
    await store.settle([charge("4", 1, rounding_pico_credits=401)], 0)
    assert (await assert_books_balance(store)).posted("rounding") == 2


async def test_everything_at_once_without_a_deadlock(store: Store) -> None:
    for organisation_id in ("org_a", "org_b"):
        await fund(store, "0", organisation_id)
        await store.grant(Grant(f"start-{organisation_id}", organisation_id, 10**6), 0)
    await store.settle([charge(f"old{n}", 50, ("org_a", "org_b")[n % 2]) for n in range(12)], 0)

    async def live(number: int) -> None:
        organisation_id = ("org_a", "org_b")[number % 2]
        grant = Grant(f"g{number}", organisation_id, 100, expires_at=10 + number)
        batch = [charge(f"c{number}-{k}", 10, ("org_b", "org_a")[k % 2], provider=f"p{k}") for k in range(4)]
        await asyncio.gather(
            store.grant(grant, 5),
            store.settle(batch, 5),
            store.settle([charge(f"r{number}", 3, organisation_id, rounding_pico_credits=700)], 9),
            store.refund_charge(Request(f"refund{number}", f"old{number}", 20), 6),
            store.correct_charge(Request(f"correct{number}", f"old{11 - number}", 40), 6),
            store.expire_grants(10 + number),
            store.seal(7),
            store.create_hold(f"h{number}", organisation_id, 10, TTL, 5),
        )

    await asyncio.gather(*(live(number) for number in range(12)))
    while await store.seal(9):
        pass
    books = await assert_books_balance(store)
    assert sum(books.charged.values()) == 12 * 50 + 12 * 43
