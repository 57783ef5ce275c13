"""`kill -9` at named places of holds, leases, captures and settlements, and what must hold afterwards."""

from __future__ import annotations

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx
import psycopg

from tests.support.eventually import eventually
from tests.support.fleet import CORE, FIRST, TOLL, Fleet
from tests.support.tenant import Tenant, a_tenant

# Where billing, and where a gateway process, can die.
BILLING_PLACES = (
    "after_hold_insert",
    "after_reserve",
    "after_hold_commit",
    "before_lease_commit",
    "after_lease_commit",
    "after_capture",
    "before_settle_commit",
    "after_settle_commit",
    "before_close_commit",
)
GATEWAY_PLACES = (
    "after_lease_grant",
    "after_hold_grant",
    "before_journal_commit",
    "after_journal_write",
    "before_settle",
    "after_settle",
    "after_settled_mark",
    "before_lease_close",
)
PLACES = [(CORE, place) for place in BILLING_PLACES] + [(FIRST, place) for place in GATEWAY_PLACES]
# Leases of the dead end soon, and idle ones go back soon.
ENVIRONMENT = {"OMNIHUB_BILLING__LEASE_TTL_S": "10"}
NANO = 10**9
AT_ONCE = 6


class Victims:
    """Callers of a fleet that loses processes: who was delivered what."""

    def __init__(self, fleet: Fleet, database_url: str) -> None:
        self.fleet = fleet
        self.delivered: Counter[str] = Counter()
        self._url = database_url
        # Enough for leases; so little that each request needs a hold of its own.
        self.rich = a_tenant(fleet, "500")
        self.poor: list[Tenant] = []

    def prepare(self, rounds: int) -> None:
        """Register who is too poor for a lease: one for each round."""
        self.poor = [a_tenant(self.fleet, "0.35") for _ in range(rounds)]

    def ask(self, tenant: Tenant) -> int:
        """Ask once; remember what was delivered. Returns the status, 0 when nobody answered."""
        body = {"model": "toll/gpt-x", "messages": [{"role": "user", "content": "?"}], "max_tokens": 8}
        headers = {"authorization": f"Bearer {tenant.key}"}
        try:
            answer = httpx.post(
                f"{self.fleet.url}/v1/chat/completions", json=body, headers=headers, timeout=20
            )
        except httpx.HTTPError:
            return 0
        if answer.status_code == 200:
            self.delivered[answer.headers["x-omnihub-decision-id"]] += 1
        return answer.status_code

    def ask_until(self, target: str, stopped: bool = False) -> None:
        """Let several callers ask, rich and poor, until a process has died, or has stopped."""
        poor = self.poor.pop()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for number in range(400):
                wave = [pool.submit(self.ask, poor if n == 0 and number < 3 else self.rich) for n in range(3)]
                if self._is_gone(target, stopped):
                    return
                for each in wave:
                    while not each.done() and not self._is_gone(target, stopped):
                        eventually(lambda each=each: each.done() or self._is_gone(target, stopped), bool, 30)
        raise AssertionError(f"{target} never came to the armed place")

    def _is_gone(self, target: str, stopped: bool) -> bool:
        process = self.fleet.processes[target]
        if not stopped:
            return process.poll() is not None
        with open(f"/proc/{process.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"

    def crash(self, target: str, place: str) -> None:
        """Run until `target` dies at `place`. It must be armed; see `arm`."""
        self.ask_until(target)
        self.fleet.wait_until_dead(target)

    def arm(self, target: str, place: str) -> None:
        """Start a process anew that will die at a place, and the other as it is."""
        self.fleet.arm(target, place)
        if target in self.fleet.processes:
            self.fleet.kill_process(target)
        self.fleet.start_process(target)
        self.fleet.wait_until_ready()

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._url) as connection:
            return connection.execute(query).fetchall()  # type: ignore[call-overload,no-any-return]

    def verify(self) -> None:
        """Assert, once everything has settled down: exact charges, nothing left open, books that add up."""
        eventually(self._open, lambda still: still == (0, 0, 0), 60)
        charges = Counter(name for (name,) in self._rows("SELECT decision_id FROM billing.usage_event"))
        assert not charges or max(charges.values()) == 1, "charged twice"
        missing = set(self.delivered) - set(charges)
        assert not missing, f"delivered and not charged: {missing}"
        amounts = {amount for (amount,) in self._rows("SELECT amount FROM billing.usage_event")}
        assert amounts <= {int(Decimal(TOLL) * NANO)}
        sums = "SELECT transaction_id FROM billing.ledger_entry GROUP BY transaction_id HAVING SUM(amount) <> 0"
        assert not self._rows(sums)
        assert "the books add up" in self.fleet.command("billing", "check")

    def _open(self) -> tuple[int, int, int]:
        """Count what is reserved or not settled yet, but for leases that are still being spent from."""
        holds = "SELECT COUNT(*) FROM billing.hold WHERE state = 'open'"
        leases = "SELECT COUNT(*) FROM billing.lease WHERE state = 'open'"
        unsettled = "SELECT COUNT(*) FROM router.journal WHERE NOT settled"
        holds_open, leases_open, waiting = (int(self._rows(q)[0][0]) for q in (holds, leases, unsettled))
        return holds_open, leases_open, waiting


def stop_and_go(process_id: int, go: bool) -> None:
    """Let a stopped process go on."""
    if go:
        os.kill(process_id, signal.SIGCONT)
