"""What the databases of a stopped suite say about money, read without any code under test."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path


class Books:
    """The billing database and the router's journal of an embedded deployment."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def _rows(self, service: str, query: str) -> list[tuple]:
        with sqlite3.connect(f"file:{self._data / f'{service}.db'}?mode=ro", uri=True) as connection:
            rows = connection.execute(query).fetchall()
        connection.close()
        return rows

    def charges_of_decisions(self) -> Counter[str]:
        """Return how often each decision has been charged."""
        return Counter(
            decision for (decision,) in self._rows("billing", "SELECT decision_id FROM usage_event")
        )

    def charges(self) -> dict[str, tuple[int, str]]:
        """Return amount and state of what was charged, by decision."""
        rows = self._rows("billing", "SELECT decision_id, amount, state FROM usage_event")
        return {decision: (amount, state) for decision, amount, state in rows}

    def journal(self) -> dict[str, bool]:
        """Return the journalled decisions, and whether they are settled."""
        settled = "attempt_id NOT IN (SELECT attempt_id FROM unsettled)"
        rows = self._rows("router", f"SELECT decision_id, {settled} FROM journal")
        return {key: bool(done) for key, done in rows}

    def check(self) -> None:
        """Assert what must hold at rest: double entry, balances, nothing reserved."""
        unbalanced = self._rows(
            "billing",
            "SELECT transaction_id, SUM(amount) FROM ledger_entry GROUP BY transaction_id"
            " HAVING SUM(amount) != 0",
        )
        assert not unbalanced, unbalanced
        # Entries go to accounts per purpose; a wallet is the sum of its organisation's.
        wrong = self._rows(
            "billing",
            "SELECT a.id, a.posted, COALESCE(SUM(e.amount), 0) FROM account a"
            " LEFT JOIN ledger_entry e ON e.account_id = a.id WHERE a.kind != 'wallet' GROUP BY a.id"
            " HAVING a.posted != COALESCE(SUM(e.amount), 0)",
        )
        assert not wrong, wrong
        wallets = self._rows(
            "billing",
            "SELECT w.id, w.posted, SUM(p.posted) FROM account w"
            " JOIN account p ON p.organisation_id = w.organisation_id"
            " AND p.kind IN ('wallet.paid', 'wallet.promo', 'receivable')"
            " WHERE w.kind = 'wallet' GROUP BY w.id HAVING w.posted != SUM(p.posted)",
        )
        assert not wallets, wallets
        self._check_grants()
        self._check_events()
        reserved = self._rows(
            "billing", "SELECT id, held, leased FROM account WHERE held != 0 OR leased != 0"
        )
        assert not reserved, reserved
        assert not self._rows("billing", "SELECT id FROM hold WHERE state = 'open'")
        assert not self._rows("billing", "SELECT id FROM lease WHERE state = 'open'")

    def _check_grants(self) -> None:
        """What is left of each grant follows from its movements, and all of them are the wallets."""
        moved = self._rows(
            "billing",
            "SELECT g.id, g.remaining, SUM(CASE WHEN m.kind IN ('plan', 'reopen', 'uncover')"
            " THEN m.amount ELSE -m.amount END) AS moved FROM credit_grant g"
            " JOIN grant_movement m ON m.grant_id = g.id GROUP BY g.id HAVING g.remaining != moved",
        )
        assert not moved, moved
        left = self._rows("billing", "SELECT COALESCE(SUM(remaining), 0) FROM credit_grant")
        owned = self._rows(
            "billing",
            "SELECT COALESCE(SUM(posted), 0) FROM account WHERE kind IN ('wallet.paid', 'wallet.promo')",
        )
        assert left == owned, (left, owned)

    def _check_events(self) -> None:
        """Every settlement took what its usage events say, and owes the providers what they say."""
        for column, kinds, sign in (
            ("amount", "'wallet.paid', 'wallet.promo', 'receivable'", "-"),
            ("cost", "'payable'", ""),
        ):
            wrong = self._rows(
                "billing",
                f"SELECT t.id, (SELECT SUM({column}) FROM usage_event u"
                " WHERE u.transaction_id = t.id) AS charged,"
                f" COALESCE((SELECT SUM({sign}e.amount) FROM ledger_entry e JOIN account a"
                " ON a.id = e.account_id"
                f" WHERE e.transaction_id = t.id AND a.kind IN ({kinds})), 0) AS booked"
                " FROM ledger_transaction t WHERE t.kind = 'charges' AND charged != booked",
            )
            assert not wrong, wrong

    def spent(self) -> int:
        """Return the nano-credits of all charges."""
        return int(self._rows("billing", "SELECT COALESCE(SUM(amount), 0) FROM usage_event")[0][0])
