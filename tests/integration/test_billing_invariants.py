"""Any sequence of calls against a model: the books always add up.

The numbers are those of the list of invariants: I1 every transaction sums to zero; I2 projections are
folds; I3 available is never negative but by late usage; I4 a hold ends once; I5 captured at most the
hold; I6 a call repeated changes nothing; I7 the same key with another body is refused; I8 charges are
what settlements took; I9 what is charged is what its price says, also when it is rated again, and the
rounding is booked (tests/support/rating_rules.py); I10 burn order and breakage; I11 a refund restores;
I14 the chain is unbroken and the checker agrees. I13 savings are a memo. I12 is in
tests/integration/budgets/test_interleavings.py and, with I4, I6 and I14, under 32 workers in
test_billing_storm.py; I15 is in router/test_charged_once.py and tests/e2e/test_money_crashes.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.billing.app import MIGRATIONS
from services.billing.domain.correction import Request
from services.billing.domain.errors import BillingError
from services.billing.domain.grant import Grant, allowance_grant
from services.billing.store import Store
from services.billing.store.tables import account, credit_grant, ledger_entry, ledger_transaction
from services.common.db import Database
from tests.support.billing import assert_books_balance, charge
from tests.support.ledger_model import Grant as ModelGrant
from tests.support.ledger_model import Model
from tests.support.rating_rules import RatingRules

# Mostly something that exists: `pick` turns a number into one of what there is.
ANY = st.integers(0, 11)
NAMES = st.sampled_from(["1", "2", "3", "4", "5", "6"])
CHARGES = st.integers(1, 40)
AMOUNTS = st.integers(1, 600)
KINDS = st.sampled_from(["paid", "promo", "allowance"])
PERIODS = st.sampled_from(["2026-01", "2026-02"])
ENDED = ("captured", "released", "expired")


class Ledger(RatingRules):
    """Every rule may come at any time, with ids that are new, known, or ended.

    Each example has an organisation of its own in a database that all share.
    """

    url: str
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = 0
        self.model = Model()

    @initialize(
        more=st.lists(st.tuples(AMOUNTS, KINDS, st.sampled_from([None, 15, 40])), min_size=1, max_size=3)
    )
    def open(self, more: list[tuple[int, str, int | None]]) -> None:
        self.organisation = f"org_{next(self.numbers)}"
        self.store = Store(Database(self.url, "billing"))
        first = Grant(self.key("first"), self.organisation, 300)
        self.run(self.store.welcome([first], 0))
        self.model.grant(ModelGrant(first.id, 300, "promo", 20, None, 0), 0)
        for number, (amount, kind, lasts) in enumerate(more):
            self.grant(f"early{number}", amount, kind, 10, lasts, False)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(assert_books_balance(self.store))  # I1, I2, I8, I10, I14
            earned, owed = self.run(self.booked())
            assert (earned, owed) == (self.model.revenue, self.model.costs)  # I8
            self.check_rating()  # I9
            self.run(self.store.database.close())
        self.runner.close()

    async def stored(self) -> tuple[dict[str, tuple[int, int, int]], dict[str, int]]:
        """Return the organisation's accounts by kind, and what is left of its grants."""
        accounts = sa.select(account).where(account.c.organisation_id == self.organisation)
        grants = sa.select(credit_grant).where(credit_grant.c.organisation_id == self.organisation)
        async with self.store.database.reading() as connection:
            return (
                {row.kind: (row.posted, row.held, row.leased) for row in await connection.execute(accounts)},
                {row.id: row.remaining for row in await connection.execute(grants)},
            )

    async def booked(self) -> tuple[int, int]:
        """Return what the organisation's transactions earned, and what they cost."""
        query = (
            sa.select(sa.func.sum(ledger_entry.c.amount))
            .join(account, account.c.id == ledger_entry.c.account_id)
            .join(ledger_transaction, ledger_transaction.c.id == ledger_entry.c.transaction_id)
            .where(ledger_transaction.c.organisation_id == self.organisation)
        )
        async with self.store.database.reading() as connection:
            earned = await connection.scalar(query.where(account.c.id.in_(("revenue.usage", "rounding"))))
            owed = await connection.scalar(query.where(account.c.kind == "payable"))
        return int(earned or 0), int(owed or 0)

    def key(self, name: str) -> str:
        return f"{self.organisation}:{name}"

    def pick(self, known: Iterable[str], number: int) -> str:
        """Return one of `known`, now and then what is none of them."""
        names = sorted(known)
        return names[number % len(names)] if names and number else "unknown"

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def attempt(self, make: Any, twice: bool) -> Any:
        """Call once or twice; the second answer, or refusal, must be the same. I6."""
        answers = []
        for _ in range(2 if twice else 1):
            try:
                answers.append(self.run(make()))
            except BillingError as error:
                answers.append(error.reason)
        assert answers[0] == answers[-1]
        return answers[0]

    @rule(
        name=NAMES,
        amount=AMOUNTS,
        kind=KINDS,
        priority=st.sampled_from([10, 20]),
        lasts=st.sampled_from([None, 20, 90]),
        twice=st.booleans(),
    )
    def grant(self, name: str, amount: int, kind: str, priority: int, lasts: int | None, twice: bool) -> None:
        expires_at = None if lasts is None else self.now + lasts
        grant = Grant(
            self.key(name),
            self.organisation,
            amount,
            kind=kind,
            priority=priority,
            expires_at=expires_at,
        )
        self.give(grant, twice)

    @rule(period=PERIODS, amount=st.sampled_from([100, 300]), twice=st.booleans())
    def allowance(self, period: str, amount: int, twice: bool) -> None:
        # The same period always ends at the same time.
        self.give(allowance_grant(self.organisation, period, amount, 10_000), twice)

    def give(self, grant: Grant, twice: bool) -> None:
        answer = self.attempt(lambda: self.store.grant(grant, self.now), twice)
        known = self.model.grants.get(grant.id)
        if known is not None:
            same = (known.amount, known.kind, known.priority, known.expires_at) == (
                grant.amount,
                grant.kind,
                grant.priority,
                grant.expires_at,
            )
            expected = known.answered if same else "IDEMPOTENCY_KEY_REUSED"  # I7
        elif self.model.closed:
            expected = "ACCOUNT_CLOSED"
        else:
            expected = self.model.grant(
                ModelGrant(grant.id, grant.amount, grant.kind, grant.priority, grant.expires_at, self.now),
                self.now,
            )
        assert (answer if isinstance(answer, str) else answer.posted) == expected

    @rule(name=NAMES, amount=AMOUNTS, ttl=st.integers(1, 50), twice=st.booleans())
    def hold(self, name: str, amount: int, ttl: int, twice: bool) -> None:
        known, allowed = self.model.holds.get(name), self.model.allows(amount)
        refusal = self.model.refusal(amount)
        answer = self.attempt(
            lambda: self.store.create_hold(self.key(name), self.organisation, amount, ttl, self.now), twice
        )
        if known is not None:
            if known["requested"] != amount:
                assert answer == "IDEMPOTENCY_KEY_REUSED"  # I7
            else:
                ended = "PRECONDITION_FAILED" if known["state"] in ENDED else known["expires_at"]
                assert answer == (known["refusal"] or ended)  # I4, I6
            return
        assert answer == (self.now + ttl if allowed else refusal)
        self.model.holds[name] = {
            "amount": amount,
            "requested": amount,
            "state": "open" if allowed else "refused",
            "refusal": "" if allowed else refusal,
            "expires_at": self.now + ttl,
        }

    @rule(number=ANY, amount=AMOUNTS, ttl=st.integers(1, 50), twice=st.booleans())
    @precondition(lambda self: self.model.holds)
    def extend(self, number: int, amount: int, ttl: int, twice: bool) -> None:
        name = self.pick(self.model.holds, number)
        known = self.model.holds.get(name)
        more = amount - known["amount"] if known else 0
        allowed = more <= 0 or self.model.allows(more)
        refusal = self.model.refusal(more)
        answer = self.attempt(lambda: self.store.extend_hold(self.key(name), amount, ttl, self.now), twice)
        if known is None:
            assert answer == "NOT_FOUND"
        elif known["state"] != "open":
            assert answer == (known["refusal"] or "PRECONDITION_FAILED")  # I4
        elif allowed:
            known["amount"] = max(known["amount"], amount)
            known["expires_at"] = max(known["expires_at"], self.now + ttl)
            assert answer == known["expires_at"]
        else:
            assert answer == refusal

    @rule(number=ANY, twice=st.booleans())
    @precondition(lambda self: self.model.holds)
    def release(self, number: int, twice: bool) -> None:
        name = self.pick(self.model.holds, number)
        known = self.model.holds.get(name)
        answer = self.attempt(lambda: self.store.release_hold(self.key(name)), twice)
        assert answer == (None if known is not None else "NOT_FOUND")
        if known is not None and known["state"] == "open":
            known["state"] = "released"

    @rule(name=NAMES, wanted=AMOUNTS, minimum=AMOUNTS, twice=st.booleans())
    def lease(self, name: str, wanted: int, minimum: int, twice: bool) -> None:
        known, available = self.model.leases.get(name), self.model.available
        allowed, refusal = self.model.allows(minimum), self.model.refusal(minimum)
        answer = self.attempt(
            lambda: self.store.acquire_lease(
                self.key(name), self.organisation, "process", wanted, minimum, 30, self.now
            ),
            twice,
        )
        if known is not None:
            expected = {"closed": "PRECONDITION_FAILED", "refused": known["refusal"]}.get(known["state"])
            assert answer == expected if expected else answer[0] == known["granted"]
            return
        granted = min(max(wanted, minimum), available) if allowed else 0
        assert answer == ((granted, self.now + 30, available - granted) if allowed else refusal)
        self.model.leases[name] = {
            "granted": granted,
            "spent": 0,
            "state": "open" if allowed else "refused",
            "refusal": "" if allowed else refusal,
        }

    @rule(
        batch=st.lists(
            st.tuples(
                CHARGES,
                st.integers(0, 400),
                # Which lease and which hold, -1 for none.
                st.integers(-1, 6),
                st.integers(-6, 6),
                st.integers(0, 300),
                st.integers(0, 999),
            ),
            min_size=1,
            max_size=4,
        ),
        twice=st.booleans(),
    )
    def settle(self, batch: list[tuple[int, int, int, int, int, int]], twice: bool) -> None:
        self.book(batch, twice)

    def book(self, batch: list[tuple[int, int, int, int, int, int]], twice: bool) -> None:
        unique = {
            f"{number:02}": (
                amount,
                self.pick(self.model.leases, lease) if lease >= 0 else "",
                self.pick(self.model.holds, hold) if hold >= 0 else "",
                cost,
                pico,
            )
            for number, amount, lease, hold, cost, pico in batch
        }
        charges = [
            charge(
                self.key(f"c{number}"),
                amount,
                self.organisation,
                lease_id=self.key(lease) if lease else "",
                hold_id=self.key(hold) if hold else "",
                cost_nano_credits=cost,
                rounding_pico_credits=pico,
                # The model knows nothing of savings: they move no money. I13.
                savings_nano_credits=7 * pico - 3000,
                savings_routing_nano_credits=-cost,
                provider=f"p{int(number) % 2}",
            )
            for number, (amount, lease, hold, cost, pico) in unique.items()
        ]
        if any(self.model.bodies.get(number, row) != row for number, row in unique.items()):
            assert (
                self.attempt(lambda: self.store.settle(charges, self.now), twice) == "IDEMPOTENCY_KEY_REUSED"
            )
            return  # I7
        self.model.bodies |= unique
        expected = self.model.settle([(number, *row) for number, row in unique.items()], self.now)
        assert self.run(self.store.settle(charges, self.now)) == expected  # I8
        if twice:
            assert self.run(self.store.settle(charges[::-1], self.now)) == 0  # I6

    @rule(number=ANY, twice=st.booleans())
    @precondition(lambda self: self.model.leases)
    def close_lease(self, number: int, twice: bool) -> None:
        name = self.pick(self.model.leases, number)
        known = self.model.leases.get(name)
        answer = self.attempt(lambda: self.store.close_lease(self.key(name)), twice)
        if known is None:
            assert answer == "NOT_FOUND"
            return
        assert answer == max(0, known["granted"] - known["spent"])
        if known["state"] == "open":
            known["state"] = "closed"

    @rule(
        key=st.integers(1, 20),
        number=ANY,
        amount=st.sampled_from([0, 10, 50, 200]),
        twice=st.booleans(),
    )
    def refund(self, key: int, number: int, amount: int, twice: bool) -> None:
        name = self.charged(number)
        body, charged = ("refund", name, amount), self.model.charges.get(name)
        request = Request(self.key(f"refund{key}"), self.key(f"c{name}"), amount)
        before = self.model.posted
        answer = self.attempt(lambda: self.store.refund_charge(request, self.now), twice)
        if self.corrected(request.id, body, charged, answer):
            return
        back = amount or charged.left
        if not back or back > charged.left:
            assert answer == "INVALID_ARGUMENT"
            return
        self.model.give_back(charged, back, self.now)
        assert self.model.posted == before + back  # I11
        assert answer[1:] == (back, self.model.posted)
        self.model.corrections[request.id] = (body, answer)

    @rule(
        key=st.integers(1, 20),
        number=ANY,
        amount=st.integers(0, 400),
        cost=st.none() | AMOUNTS,
        twice=st.booleans(),
    )
    def correct(self, key: int, number: int, amount: int, cost: int | None, twice: bool) -> None:
        name = self.charged(number)
        body, charged = ("correct", name, amount, cost), self.model.charges.get(name)
        request = Request(self.key(f"correct{key}"), self.key(f"c{name}"), amount, cost)
        answer = self.attempt(lambda: self.store.correct_charge(request, self.now), twice)
        if self.corrected(request.id, body, charged, answer):
            return
        self.model.late |= amount > charged.left
        self.model.give_back(charged, charged.left, self.now)
        charged.parts = self.model.pay(amount, self.now)
        self.model.revenue += amount
        self.model.costs += 0 if cost is None else cost - charged.cost
        charged.cost = charged.cost if cost is None else cost
        assert answer[1:] == (amount, self.model.posted)
        self.model.corrections[request.id] = (body, answer)

    def charged(self, number: int) -> str:
        """Return one of a few charges, so that one is corrected several times; there is always one."""
        if not self.model.charges:
            self.book([(1, 250, -1, -1, 200, 0)], False)
        return self.pick(sorted(self.model.charges)[:3], number)

    def corrected(self, key: str, body: Any, charged: Any, answer: Any) -> bool:
        """Tell whether a correction is none: of an unknown charge, or done before."""
        if charged is None:
            assert answer == "NOT_FOUND"
        elif key in self.model.corrections:
            known, answered = self.model.corrections[key]
            assert answer == (answered if known == body else "IDEMPOTENCY_KEY_REUSED")  # I6, I7
        else:
            return False
        return True

    @rule(number=ANY, key=st.integers(1, 20), twice=st.booleans())
    @precondition(lambda self: len(self.model.grants) > 4)
    def reverse(self, number: int, key: int, twice: bool) -> None:
        name = self.pick(self.model.grants, number)
        grant = self.model.grants.get(name)
        request = Request(self.key(f"reverse{key}"), name)
        answer = self.attempt(lambda: self.store.reverse_grant(request, self.now), twice)
        if self.corrected(request.id, name, grant, answer):
            return
        if grant.remaining > self.model.available:
            assert answer == "IN_FLIGHT_BUDGET_EXHAUSTED"
            return
        amount, grant.remaining = grant.remaining, 0
        assert answer == (request.id, amount, self.model.posted)
        self.model.corrections[request.id] = (name, answer)

    @rule(twice=st.booleans())
    @precondition(lambda self: not self.model.closed and self.now > 60)
    def close_account(self, twice: bool) -> None:
        for expected in (True, False) if twice else (True,):
            assert self.run(self.store.close_account(self.organisation, "a", "", self.now)) is expected
        self.model.closed = True

    @rule()
    @precondition(lambda self: self.model.closed)
    def reopen_account(self) -> None:
        assert self.run(self.store.reopen_account(self.organisation, "a", "", self.now))
        self.model.closed = False

    @rule(seconds=st.integers(1, 60), twice=st.booleans())
    @precondition(lambda self: self.now < 500)
    def expire(self, seconds: int, twice: bool) -> None:
        self.now += seconds
        due = [h for h in self.model.holds.values() if h["state"] == "open" and h["expires_at"] <= self.now]
        for _ in range(2 if twice else 1):
            self.run(self.store.expire_holds(self.now))
            self.run(self.store.expire_grants(self.now))
        for hold in due:
            hold["state"] = "expired"
        self.model.expire(self.now)

    @rule()
    def seal(self) -> None:
        self.run(self.store.seal(self.now))

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "store"):
            return
        model = self.model
        accounts, remaining = self.run(self.stored())
        assert accounts["wallet"] == (model.posted, model.held, model.leased)  # I2
        assert model.available >= 0 or model.late  # I3
        assert accounts["receivable"] == (-model.owed, 0, 0)
        assert remaining == {name: grant.remaining for name, grant in model.grants.items()}  # I10


def test_any_sequence_of_calls_keeps_the_books(database_url: str) -> None:
    asyncio.run(_open(database_url))
    machine = type("Machine", (Ledger,), {"url": database_url, "numbers": itertools.count()})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30 if database_url.startswith("sqlite") else 10,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


async def _open(database_url: str) -> None:
    database = Database(database_url, "billing")
    await database.migrate(MIGRATIONS)
    await Store(database).open_system_accounts(0)
    await database.close()
