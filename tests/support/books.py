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
        return {
            key: bool(done) for key, done in self._rows("router", "SELECT decision_id, settled FROM journal")
        }

    def check(self) -> None:
        """Assert what must hold at rest: double entry, balances, nothing reserved."""
        unbalanced = self._rows(
            "billing",
            "SELECT transaction_id, SUM(amount) FROM ledger_entry GROUP BY transaction_id"
            " HAVING SUM(amount) != 0",
        )
        assert not unbalanced, unbalanced
        wrong = self._rows(
            "billing",
            "SELECT a.id, a.posted, COALESCE(SUM(e.amount), 0) FROM account a"
            " LEFT JOIN ledger_entry e ON e.account_id = a.id GROUP BY a.id"
            " HAVING a.posted != COALESCE(SUM(e.amount), 0)",
        )
        assert not wrong, wrong
        reserved = self._rows(
            "billing", "SELECT id, held, leased FROM account WHERE held != 0 OR leased != 0"
        )
        assert not reserved, reserved
        assert not self._rows("billing", "SELECT id FROM hold WHERE state = 'open'")
        assert not self._rows("billing", "SELECT id FROM lease WHERE state = 'open'")

    def spent(self) -> int:
        """Return the nano-credits of all charges."""
        return int(self._rows("billing", "SELECT COALESCE(SUM(amount), 0) FROM usage_event")[0][0])
