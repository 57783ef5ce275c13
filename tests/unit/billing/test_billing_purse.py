from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.billing.domain.accounts import LONGEST_NAME, cogs_of, kind_of, payable_of
from services.billing.domain.correction import Booking, Step, current
from services.billing.domain.purse import Posting, Purse, Slice, burned

REVENUE = "revenue.usage"


def slices(*amounts: int) -> list[Slice]:
    return [Slice(f"g{n}", "promo", 20, None, n, amount) for n, amount in enumerate(amounts)]


@given(st.lists(st.integers(1, 50), max_size=5), st.lists(st.integers(0, 60), max_size=6))
def test_who_paid_for_a_charge_can_be_told_from_its_transaction(
    grants: list[int], charges: list[int]
) -> None:
    purse, posting = Purse("org_a", slices(*grants), sum(grants)), Posting("t", "charges")
    each: list[list[tuple[str | None, int]]] = []
    for amount in charges:
        alone = Posting("t", "charges")
        purse.charge(alone, amount, REVENUE, 0)
        paid: list[tuple[str | None, int]] = [(m.grant_id, m.amount) for m in alone.movements]
        on_credit = amount - sum(part for _, part in paid)
        each.append([*paid, (None, on_credit)] if on_credit else paid)
    whole = Purse("org_a", slices(*grants), sum(grants))
    whole.charge(posting, sum(charges), REVENUE, 0)
    releases = [(movement.grant_id, movement.amount) for movement in posting.movements]
    start = 0
    for amount, paid in zip(charges, each, strict=True):
        assert burned(releases, start, amount) == paid
        start += amount
    assert sum(posting.entries.values()) == 0
    assert whole.posted == purse.posted == sum(grants) - sum(charges)


@given(st.lists(st.integers(1, 50), max_size=4), st.integers(0, 150), st.integers(0, 150))
def test_a_refund_is_the_charge_backwards(grants: list[int], amount: int, back: int) -> None:
    back = min(back, amount)
    purse, posting = Purse("org_a", slices(*grants), sum(grants)), Posting("t", "charges")
    purse.charge(posting, amount, REVENUE, 0)
    releases = [(movement.grant_id, movement.amount) for movement in posting.movements]
    refund = Posting("r", "refund")
    purse.restore(refund, burned(releases, amount - back, back)[::-1], [], REVENUE, 0)
    expected = Purse("org_a", slices(*grants), sum(grants))
    expected.charge(Posting("t", "charges"), amount - back, REVENUE, 0)
    left = {name: slice_.remaining for name, slice_ in purse.slices.items()}
    assert left == {name: slice_.remaining for name, slice_ in expected.slices.items()}
    assert purse.owed == expected.owed
    assert sum(refund.entries.values()) == 0


def test_the_valid_booking_of_a_charge_is_the_last_one() -> None:
    original = Booking("t", 30, 100, 80)
    steps = [Step("refund", "r1", 20, 0), Step("correction", "c1", 50, 40), Step("refund", "r2", 10, 0)]
    assert current(original, steps[:1]) == Booking("t", 30, 100, 80, refunded=20)
    assert current(original, steps) == Booking("c1", 0, 50, 40, refunded=10)
    assert current(original, steps).left == 40


def test_providers_have_accounts_whatever_they_are_called() -> None:
    assert (cogs_of("openai"), payable_of("openai")) == ("cogs.openai", "payable.openai")
    assert cogs_of("") == "cogs.unknown"
    long, longer = cogs_of("x" * 300), cogs_of("x" * 301)
    assert long != longer
    assert len(long) < LONGEST_NAME + 30
    assert [kind_of(name) for name in ("cogs.a.b", "payable.x", "clearing.manual", "rounding")] == [
        "cogs",
        "payable",
        "clearing",
        "rounding",
    ]
