"""Holds and leases over both databases: nothing overspends, everything ends once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest
import sqlalchemy as sa

from services.billing.domain.errors import (
    AlreadyEndedError,
    BillingError,
    IdempotencyKeyReusedError,
    InFlightBudgetExhaustedError,
    InsufficientCreditsError,
    NotFoundError,
)
from services.billing.domain.grant import Grant
from services.billing.store import Store, reservations
from tests.support.billing import ORGANISATION, SECOND, assert_books_balance, charge, fund, open_store, wallet

TEN_CENTS = 100_000_000
TTL = 60 * SECOND


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with open_store(database_url) as opened:
        yield opened


class UnguardedStore(Store):
    """The mutant: sets credits aside without looking."""

    def _guard(self, amount: int) -> sa.ColumnElement[bool]:
        return sa.true()


async def admitted(store: Store, requests: int, *, leases: bool) -> int:
    """Ask for 0.10 credits many times at once and return how often the answer was yes."""

    async def ask(number: int) -> bool:
        try:
            if leases:
                await store.acquire_lease(
                    f"l{number}", ORGANISATION, f"process{number % 3}", TEN_CENTS, TEN_CENTS, TTL, 0
                )
            else:
                await store.create_hold(f"h{number}", ORGANISATION, TEN_CENTS, TTL, 0)
        except InFlightBudgetExhaustedError:
            return False
        return True

    return sum(await asyncio.gather(*(ask(number) for number in range(requests))))


@pytest.mark.parametrize("leases", [False, True], ids=["holds", "leases"])
async def test_a_thousand_requests_at_once_never_overspend(store: Store, leases: bool) -> None:
    await fund(store, "5.00")
    assert await admitted(store, 1000, leases=leases) == 50
    books = await assert_books_balance(store)
    posted, held, leased = books.accounts["wallet:org_a"]
    assert (posted, held + leased) == (5_000_000_000, 5_000_000_000)


@pytest.mark.parametrize("leases", [False, True], ids=["holds", "leases"])
async def test_without_its_guard_the_statement_overspends(
    database_url: str, leases: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A lease is cut from what is there, too: the mutant looks at neither.
    monkeypatch.setattr(reservations, "slice_of", lambda available, wanted, minimum: wanted)
    async with open_store(database_url, UnguardedStore) as mutant:
        await fund(mutant, "5.00")
        # So the test above would notice that the guard is gone.
        assert await admitted(mutant, 100, leases=leases) == 100
        posted, held, leased = await wallet(mutant)
        assert posted - held - leased < 0


async def test_leases_of_any_size_fit_into_what_there_is(store: Store) -> None:
    await fund(store, "1")
    asked = [
        store.acquire_lease(f"l{n}", ORGANISATION, "process", 70_000_000 * (n % 5 + 1), 1, TTL, 0)
        for n in range(60)
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    granted = [answer[0] for answer in answers if not isinstance(answer, BaseException)]
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert all(isinstance(error, InFlightBudgetExhaustedError) for error in refused)
    assert sum(granted) == 10**9
    await assert_books_balance(store)


async def test_holds_extend_release_and_settle_at_once_without_a_deadlock(store: Store) -> None:
    for organisation_id in ("org_a", "org_b"):
        await fund(store, "1000", organisation_id)

    async def live(number: int) -> None:
        organisation_id = ("org_a", "org_b")[number % 2]
        hold, lease = f"h{number}", f"l{number % 6}"
        await store.create_hold(hold, organisation_id, 1000, TTL, 0)
        await store.extend_hold(hold, 2000, TTL, 0)
        await store.acquire_lease(lease, organisation_id, "process", 5000, 5000, TTL, 0)
        batch = [
            charge(f"c{number}-{k}", 10, ("org_a", "org_b")[k % 2], lease_id=f"l{(number + k) % 6}")
            for k in range(6)
        ]
        await asyncio.gather(
            store.settle([*batch, charge(f"c{number}", 1500, organisation_id, hold_id=hold)], 0),
            store.settle(list(reversed(batch)), 0),
            store.renew_leases([f"l{k}" for k in (5, 3, 1, 0, 2, 4)], TTL, 0),
            store.release_hold(hold),
        )

    await asyncio.gather(*(live(number) for number in range(40)))
    books = await assert_books_balance(store)
    assert sum(books.charged.values()) == 40 * (60 + 1500)


async def test_a_hold_can_be_asked_for_again(store: Store) -> None:
    await fund(store, "1")
    first = await store.create_hold("h", ORGANISATION, 100, TTL, 5)
    assert await store.create_hold("h", ORGANISATION, 100, TTL, 99) == first == TTL + 5
    await store.extend_hold("h", 300, TTL, 6)
    assert await store.create_hold("h", ORGANISATION, 100, TTL, 99) == TTL + 6
    assert await wallet(store) == (10**9, 300, 0)
    for organisation_id, amount in ((ORGANISATION, 101), ("org_b", 100)):
        with pytest.raises(IdempotencyKeyReusedError):
            await store.create_hold("h", organisation_id, amount, TTL, 0)
    await store.release_hold("h")
    with pytest.raises(AlreadyEndedError, match="released"):
        await store.create_hold("h", ORGANISATION, 100, TTL, 0)
    await assert_books_balance(store)


async def test_the_same_hold_at_once_is_made_once(store: Store) -> None:
    await fund(store, "1")
    await asyncio.gather(*(store.create_hold("h", ORGANISATION, 100, TTL, 0) for _ in range(20)))
    assert await wallet(store) == (10**9, 100, 0)


async def test_the_same_lease_at_once_is_made_once(store: Store) -> None:
    await fund(store, "1")
    answers = await asyncio.gather(
        *(store.acquire_lease("l", ORGANISATION, "process", 100, 50, TTL, 0) for _ in range(20))
    )
    assert {answer[0] for answer in answers} == {100}
    assert await wallet(store) == (10**9, 0, 100)


async def test_a_hold_is_raised_never_lowered(store: Store) -> None:
    await fund(store, "0.000001")
    await store.create_hold("h", ORGANISATION, 600, TTL, 0)
    for _ in range(2):
        assert await store.extend_hold("h", 900, TTL, 10) == TTL + 10
        assert await wallet(store) == (1000, 900, 0)
    assert await store.extend_hold("h", 5, 1, 0) == TTL + 10
    assert await wallet(store) == (1000, 900, 0)
    with pytest.raises(InFlightBudgetExhaustedError):
        await store.extend_hold("h", 1001, TTL, 0)
    assert await wallet(store) == (1000, 900, 0)
    with pytest.raises(NotFoundError):
        await store.extend_hold("unknown", 5, TTL, 0)
    await store.settle([charge("c", 1, hold_id="h")], 0)
    with pytest.raises(AlreadyEndedError, match="captured"):
        await store.extend_hold("h", 950, TTL, 0)


async def test_a_release_gives_everything_back_once(store: Store) -> None:
    await fund(store, "1")
    await store.create_hold("h", ORGANISATION, 100, TTL, 0)
    await asyncio.gather(*(store.release_hold("h") for _ in range(10)))
    assert await wallet(store) == (10**9, 0, 0)
    with pytest.raises(NotFoundError):
        await store.release_hold("unknown")


async def test_holds_expire_and_several_sweepers_do_no_harm(store: Store) -> None:
    await fund(store, "1")
    for number in range(30):
        await store.create_hold(f"h{number}", ORGANISATION, 100, TTL + number, 0)
    assert await store.expire_holds(TTL - 1) == 0
    swept = await asyncio.gather(*(store.expire_holds(TTL + 14) for _ in range(5)))
    assert sum(swept) == 15
    assert await wallet(store) == (10**9, 1500, 0)
    await assert_books_balance(store)


async def test_refusals_tell_no_credits_from_credits_in_use(store: Store) -> None:
    with pytest.raises(InsufficientCreditsError):
        await store.create_hold("h", "org_unknown", 1, TTL, 0)
    await fund(store, "0.000001")
    with pytest.raises(InsufficientCreditsError):
        await store.create_hold("h2", ORGANISATION, 1001, TTL, 0)
    with pytest.raises(InsufficientCreditsError):
        await store.acquire_lease("l", ORGANISATION, "process", 5000, 1001, TTL, 0)
    await store.create_hold("h3", ORGANISATION, 900, TTL, 0)
    with pytest.raises(InFlightBudgetExhaustedError) as caught:
        await store.acquire_lease("l2", ORGANISATION, "process", 200, 101, TTL, 0)
    assert caught.value.retry_after_s == 1.0
    await store.release_hold("h3")
    assert await store.acquire_lease("l3", ORGANISATION, "process", 200, 101, TTL, 0) == (200, TTL, 800)


async def test_a_refused_id_stays_refused(store: Store) -> None:
    await fund(store, "0.000001")
    await store.create_hold("first", ORGANISATION, 900, TTL, 0)
    first = [await _refused(call) for call in _asking(store)]
    assert [error.reason for error in first] == [
        "IN_FLIGHT_BUDGET_EXHAUSTED",
        "INSUFFICIENT_CREDITS",
        "IN_FLIGHT_BUDGET_EXHAUSTED",
    ]
    await store.release_hold("first")
    await store.grant(Grant("grant:admin:k", ORGANISATION, 10**9), 0)
    again = [await _refused(call) for call in _asking(store)]
    for before, after in zip(first, again, strict=True):
        assert (before.reason, before.message, before.metadata, before.retry_after_s) == (
            after.reason,
            after.message,
            after.metadata,
            after.retry_after_s,
        )
    # Another body is another thing; a new id is a new try.
    with pytest.raises(IdempotencyKeyReusedError):
        await store.create_hold("h", ORGANISATION, 102, TTL, 0)
    assert await store.create_hold("h-again", ORGANISATION, 101, TTL, 0) == TTL
    # What was never open ends like anything that has ended.
    await store.release_hold("h")
    assert await store.close_lease("l") == 0
    await assert_books_balance(store)


def _asking(store: Store) -> list[Awaitable[object]]:
    return [
        store.create_hold("h", ORGANISATION, 101, TTL, 0),
        store.create_hold("much", ORGANISATION, 1001, TTL, 0),
        store.acquire_lease("l", ORGANISATION, "process", 200, 101, TTL, 0),
    ]


async def _refused(call: Awaitable[object]) -> BillingError:
    with pytest.raises(BillingError) as caught:
        await call
    return caught.value


async def test_a_lease_gets_what_is_left(store: Store) -> None:
    await fund(store, "0.000001")
    assert await store.acquire_lease("a", ORGANISATION, "one", 700, 1, TTL, 0) == (700, TTL, 300)
    assert await store.acquire_lease("b", ORGANISATION, "two", 700, 300, TTL, 0) == (300, TTL, 0)
    assert await store.acquire_lease("a", ORGANISATION, "one", 700, 1, TTL, 9) == (700, TTL, 0)
    with pytest.raises(IdempotencyKeyReusedError):
        await store.acquire_lease("a", ORGANISATION, "two", 700, 1, TTL, 0)
    await store.settle([charge("c", 250, lease_id="a")], 0)
    assert await wallet(store) == (750, 0, 750)
    assert [await store.close_lease("a") for _ in range(2)] == [450, 450]
    assert await wallet(store) == (750, 0, 300)
    with pytest.raises(AlreadyEndedError):
        await store.acquire_lease("a", ORGANISATION, "one", 700, 1, TTL, 0)
    with pytest.raises(NotFoundError):
        await store.close_lease("unknown")


async def test_leases_expire_only_on_the_list(store: Store) -> None:
    await fund(store, "1")
    for lease_id, holder in (("a", "one"), ("b", "two"), ("c", "one")):
        await store.acquire_lease(lease_id, ORGANISATION, holder, 100, 100, TTL, 0)
    assert await store.expired_leases("", TTL - 1) == []
    assert await store.renew_leases(["c", "a", "unknown"], TTL, 10) == ["a", "c"]
    assert await store.expired_leases("", TTL) == [("b", "two")]
    assert await store.expired_leases("one", TTL) == []
    assert await store.expired_leases("one", TTL + 10) == [("a", "one"), ("c", "one")]
    await store.close_lease("b")
    assert await store.renew_leases(["b"], TTL, 10) == []
    assert await store.renew_leases([], TTL, 10) == []
    many = [f"x{number}" for number in range(1200)]
    assert await store.renew_leases([*many, "a"], TTL, 10) == ["a"]
    assert (await wallet(store))[2] == 200


async def test_abandoned_leases_are_closed_in_the_end(store: Store) -> None:
    await fund(store, "1")
    await store.acquire_lease("a", ORGANISATION, "one", 100, 100, TTL, 0)
    await store.acquire_lease("b", ORGANISATION, "one", 100, 100, TTL, 5)
    await store.settle([charge("c", 30, lease_id="a")], 0)
    assert await store.close_abandoned_leases(TTL - 1) == []
    assert await store.close_abandoned_leases(TTL) == ["a"]
    assert await wallet(store) == (10**9 - 30, 0, 100)
    await assert_books_balance(store)


async def test_refusals_change_nothing(store: Store) -> None:
    await fund(store, "0.000001")
    before = await assert_books_balance(store)
    for attempt in (
        store.create_hold("h", ORGANISATION, 2000, TTL, 0),
        store.acquire_lease("l", ORGANISATION, "p", 2000, 2000, TTL, 0),
        store.release_hold("unknown"),
        store.close_lease("unknown"),
    ):
        with pytest.raises(BillingError):
            await attempt
    assert await assert_books_balance(store) == before
