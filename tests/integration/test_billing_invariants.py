"""Any sequence of calls against a small model: the books always add up."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.billing.app import MIGRATIONS
from services.billing.domain.errors import BillingError
from services.billing.domain.grant import Grant
from services.billing.store import Store
from services.common.db import Database, sqlite_url
from tests.support.billing import ORGANISATION, assert_books_balance, charge

IDS = st.sampled_from(["1", "2", "3", "4"])
AMOUNTS = st.integers(1, 400)


class Model:
    """What the store must do, in a page."""

    def __init__(self) -> None:
        self.posted = 0
        self.late = False
        self.grants: dict[str, int] = {}
        self.holds: dict[str, dict[str, Any]] = {}
        self.leases: dict[str, dict[str, Any]] = {}
        self.charges: set[str] = set()

    @property
    def held(self) -> int:
        return sum(hold["amount"] for hold in self.holds.values() if hold["open"])

    @property
    def leased(self) -> int:
        open_leases = [lease for lease in self.leases.values() if lease["open"]]
        return sum(max(0, lease["granted"] - lease["spent"]) for lease in open_leases)

    @property
    def available(self) -> int:
        return self.posted - self.held - self.leased

    def charge(self, charge_id: str, amount: int, lease_id: str, hold_id: str) -> None:
        if charge_id in self.charges:
            return
        self.charges.add(charge_id)
        self.posted -= amount
        hold, lease = self.holds.get(hold_id), self.leases.get(lease_id)
        if hold is not None and hold["open"]:
            hold["open"] = False
            self.late |= amount > hold["amount"]
        elif not hold_id and lease is not None and lease["open"]:
            self.late |= amount > max(0, lease["granted"] - lease["spent"])
            lease["spent"] += amount
        else:
            self.late = True


class Ledger(RuleBasedStateMachine):
    """Every rule may come at any time, with ids that are new, known, or ended."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp(prefix="omnihub-ledger-"))
        self.now = 0
        self.model = Model()

    @initialize()
    def open(self) -> None:
        shutil.copy(self.template, self.folder / "billing.db")
        self.store = Store(Database(sqlite_url(self.folder / "billing.db"), "billing"))
        self.run(self.store.welcome([Grant(f"grant:free:{ORGANISATION}", ORGANISATION, 1000)], 0))
        self.model.posted = 1000

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.run(self.store.database.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def run(self, coroutine: Any) -> Any:
        return self.runner.run(coroutine)

    def attempt(self, make: Any, twice: bool) -> Any:
        """Call once or twice; the second answer, or refusal, must be the same."""
        answers = []
        for _ in range(2 if twice else 1):
            try:
                answers.append(self.run(make()))
            except BillingError as error:
                answers.append(error.reason)
        assert answers[0] == answers[-1]
        return answers[0]

    @rule(grant_id=IDS, amount=AMOUNTS, twice=st.booleans())
    def grant(self, grant_id: str, amount: int, twice: bool) -> None:
        known = self.model.grants.get(grant_id)
        answer = self.attempt(
            lambda: self.store.grant(Grant(grant_id, ORGANISATION, amount), self.now), twice
        )
        if known is None:
            self.model.grants[grant_id] = amount
            self.model.posted += amount
        if known is not None and known != amount:
            assert answer == "IDEMPOTENCY_KEY_REUSED"
        else:
            assert answer.posted == self.model.posted

    @rule(hold_id=IDS, amount=AMOUNTS, ttl=st.integers(1, 50), twice=st.booleans())
    def hold(self, hold_id: str, amount: int, ttl: int, twice: bool) -> None:
        known, enough = self.model.holds.get(hold_id), self.model.available >= amount
        posted = self.model.posted
        answer = self.attempt(
            lambda: self.store.create_hold(hold_id, ORGANISATION, amount, ttl, self.now), twice
        )
        if known is not None:
            if known["requested"] != amount:
                assert answer == "IDEMPOTENCY_KEY_REUSED"
            else:
                assert answer == (known["expires_at"] if known["open"] else "PRECONDITION_FAILED")
        elif enough:
            assert answer == self.now + ttl
            self.model.holds[hold_id] = {
                "amount": amount,
                "requested": amount,
                "open": True,
                "expires_at": self.now + ttl,
            }
        else:
            expected = "INSUFFICIENT_CREDITS" if posted < amount else "IN_FLIGHT_BUDGET_EXHAUSTED"
            assert answer == expected

    @rule(hold_id=IDS, amount=AMOUNTS, ttl=st.integers(1, 50), twice=st.booleans())
    def extend(self, hold_id: str, amount: int, ttl: int, twice: bool) -> None:
        known = self.model.holds.get(hold_id)
        more = amount - known["amount"] if known else 0
        enough = more <= 0 or self.model.available >= more
        answer = self.attempt(lambda: self.store.extend_hold(hold_id, amount, ttl, self.now), twice)
        if known is None:
            assert answer == "NOT_FOUND"
        elif not known["open"]:
            assert answer == "PRECONDITION_FAILED"
        elif enough:
            known["amount"] = max(known["amount"], amount)
            known["expires_at"] = max(known["expires_at"], self.now + ttl)
            assert answer == known["expires_at"]
        else:
            assert answer in ("INSUFFICIENT_CREDITS", "IN_FLIGHT_BUDGET_EXHAUSTED")

    @rule(hold_id=IDS, twice=st.booleans())
    def release(self, hold_id: str, twice: bool) -> None:
        answer = self.attempt(lambda: self.store.release_hold(hold_id), twice)
        assert answer == (None if hold_id in self.model.holds else "NOT_FOUND")
        if answer is None:
            self.model.holds[hold_id]["open"] = False

    @rule(lease_id=IDS, wanted=AMOUNTS, minimum=AMOUNTS, twice=st.booleans())
    def lease(self, lease_id: str, wanted: int, minimum: int, twice: bool) -> None:
        known, available = self.model.leases.get(lease_id), self.model.available
        posted = self.model.posted
        answer = self.attempt(
            lambda: self.store.acquire_lease(
                lease_id, ORGANISATION, "process", wanted, minimum, 30, self.now
            ),
            twice,
        )
        if known is not None:
            assert answer == "PRECONDITION_FAILED" if not known["open"] else answer[0] == known["granted"]
        elif available >= minimum:
            granted = min(max(wanted, minimum), available)
            assert answer == (granted, self.now + 30, available - granted)
            self.model.leases[lease_id] = {"granted": granted, "spent": 0, "open": True}
        else:
            expected = "INSUFFICIENT_CREDITS" if posted < minimum else "IN_FLIGHT_BUDGET_EXHAUSTED"
            assert answer == expected

    @rule(
        batch=st.lists(
            st.tuples(
                st.integers(1, 25),
                st.integers(0, 400),
                st.sampled_from(["", "1", "2", "3", "unknown"]),
                st.sampled_from(["", "", "1", "2", "unknown"]),
            ),
            max_size=4,
        ),
        twice=st.booleans(),
    )
    def settle(self, batch: list[tuple[int, int, str, str]], twice: bool) -> None:
        unique = {number: row for number, *row in batch}
        charges = [
            charge(f"c{number}", amount, lease_id=lease_id, hold_id=hold_id)
            for number, (amount, lease_id, hold_id) in unique.items()
        ]
        fresh = [c for c in charges if c.charge_id not in self.model.charges]
        # The charges of a batch that share a hold capture it together.
        captured: dict[str, int] = {}
        for c in sorted(fresh, key=lambda c: c.charge_id):
            hold = self.model.holds.get(c.hold_id)
            if hold is not None and (hold["open"] or c.hold_id in captured):
                captured[c.hold_id] = captured.get(c.hold_id, 0) + c.amount_nano_credits
                self.model.late |= captured[c.hold_id] > hold["amount"]
            self.model.charge(c.charge_id, c.amount_nano_credits, c.lease_id, c.hold_id)
        assert self.run(self.store.settle(charges, self.now)) == len(fresh)
        if twice:
            assert self.run(self.store.settle(charges[::-1], self.now)) == 0

    @rule(lease_id=IDS, twice=st.booleans())
    def close(self, lease_id: str, twice: bool) -> None:
        known = self.model.leases.get(lease_id)
        answer = self.attempt(lambda: self.store.close_lease(lease_id), twice)
        if known is None:
            assert answer == "NOT_FOUND"
        else:
            assert answer == max(0, known["granted"] - known["spent"])
            known["open"] = False

    @rule(seconds=st.integers(1, 60), twice=st.booleans())
    @precondition(lambda self: self.now < 500)
    def expire(self, seconds: int, twice: bool) -> None:
        self.now += seconds
        due = [h for h in self.model.holds.values() if h["open"] and h["expires_at"] <= self.now]
        assert self.run(self.store.expire_holds(self.now)) == len(due)
        for hold in due:
            hold["open"] = False
        if twice:
            assert self.run(self.store.expire_holds(self.now)) == 0

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "store"):
            return
        books = self.run(assert_books_balance(self.store))
        model = self.model
        posted, held, leased = books.accounts[f"wallet:{ORGANISATION}"]
        assert (posted, held, leased) == (model.posted, model.held, model.leased)
        assert model.available >= 0 or model.late
        assert books.total == 0


async def _make_template(path: Path) -> None:
    database = Database(sqlite_url(path), "billing")
    await database.migrate(MIGRATIONS)
    await Store(database).open_system_accounts(0)
    await database.close()


class TestLedger(Ledger.TestCase):  # type: ignore[misc,name-defined]
    settings = settings(
        max_examples=30,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = Path(tempfile.mkdtemp(prefix="omnihub-ledger-"))
        Ledger.template = cls.folder / "template.db"
        asyncio.run(_make_template(Ledger.template))

    @classmethod
    def tearDownClass(cls) -> None:
        shutil.rmtree(cls.folder)
