"""`kill -9` at named places of holds, leases, captures and settlements, and what must hold afterwards."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psycopg

from tests.support.eventually import eventually
from tests.support.fleet import CORE, FIRST, TOLL, Fleet, running_fleet
from tests.support.postgresql import KillableServer
from tests.support.tenant import Tenant, a_tenant
from tests.support.upstream import Upstream

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
# Leases of the dead end soon.
ENVIRONMENT = {"OMNIHUB_BILLING__LEASE_TTL_S": "10"}
NANO = 10**9
AT_ONCE = 4
WAVES = 300


class Victims:
    """Callers of a fleet that loses processes: who was delivered what."""

    def __init__(self, fleet: Fleet, database_url: str) -> None:
        self.fleet = fleet
        self.delivered: Counter[str] = Counter()
        self._url = database_url
        # Enough for leases; so little that each request needs a hold of its own.
        self.rich = a_tenant(fleet, "5000")
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

    def _ask_until(self, target: str, stopped: bool, act: Callable[[], None]) -> None:
        """Let callers ask, rich and poor, until a process has died, or has stopped; then `act`."""
        poor = self.poor.pop()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for number in range(WAVES):
                callers = [poor if number < 3 else self.rich, *[self.rich] * (AT_ONCE - 1)]
                wave = [pool.submit(self.ask, caller) for caller in callers]
                eventually(
                    lambda wave=wave: self._is_gone(target, stopped) or all(each.done() for each in wave),
                    within_s=60,
                )
                if self._is_gone(target, stopped):
                    act()
                    return
        raise AssertionError(f"{target} never came to the armed place:\n{self.fleet.log(target)[-2000:]}")

    def _is_gone(self, target: str, stopped: bool) -> bool:
        process = self.fleet.processes.get(target)
        if process is None:
            return False
        if not stopped:
            return process.poll() is not None
        with open(f"/proc/{process.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "T"

    def crash(self, target: str, place: str) -> None:
        """Let `target` die at a place while callers ask."""
        self._start_armed(target, f"{place}:2", False)
        self._ask_until(target, False, lambda: self.fleet.wait_until_dead(target))

    def lose_database(self, server: KillableServer, target: str, place: str) -> None:
        """Kill PostgreSQL at the moment when `target` is at a place; both go on afterwards."""
        self._start_armed(target, f"{place}:2:stop", True)
        process = self.fleet.processes[target]

        def kill_server() -> None:
            server.kill()
            os.kill(process.pid, signal.SIGCONT)
            server.start()

        self._ask_until(target, True, kill_server)
        # It has passed the place and lives on.
        self.fleet.armed[target] = ""

    def _start_armed(self, target: str, crash_at: str, stopped: bool) -> None:
        """Start what does not run, with `target` armed: it may reach the place while others replay."""
        for each in (CORE, FIRST):
            armed = crash_at if each == target else ""
            if each in self.fleet.processes and self.fleet.armed.get(each, "") != armed:
                self.fleet.kill_process(each)
            self.fleet.arm(each, armed)
            if each not in self.fleet.processes:
                self.fleet.start_process(each)
        eventually(lambda: self._is_gone(target, stopped) or self.fleet.is_ready(), within_s=120)

    def settle_down(self) -> None:
        """Let everything expire that the dead have left: nothing may stay reserved, nothing uncharged."""
        self._start_armed("", "", False)
        eventually(lambda: self.ask(self.rich), lambda status: status == 200, 60)
        # An orderly end: what is still open now, nobody holds any more.
        os.kill(self.fleet.processes[FIRST].pid, signal.SIGTERM)
        self.fleet.processes.pop(FIRST).wait(45)
        with psycopg.connect(self._url) as connection:
            for table in ("hold", "lease"):
                connection.execute(f"UPDATE billing.{table} SET expires_at = 0 WHERE state = 'open'")
        self.fleet.start_process(FIRST)
        self.fleet.wait_until_ready()
        eventually(self._open, lambda still: still == (0, 0, 0), 120)
        self.verify()

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._url) as connection:
            return connection.execute(query).fetchall()  # type: ignore[call-overload,no-any-return]

    def verify(self) -> None:
        """Assert exact charges and books that add up. Nothing may be on its way any more."""
        charges = Counter(name for (name,) in self._rows("SELECT decision_id FROM billing.usage_event"))
        assert max(charges.values()) == 1, "charged twice"
        # I15: what was used is charged, and nothing else is.
        used = self._rows("SELECT attempt_id FROM router.journal WHERE charge <> ''")
        assert sorted(used) == sorted(self._rows("SELECT id FROM billing.usage_event"))
        missing = set(self.delivered) - set(charges)
        assert not missing, f"delivered and not charged: {missing}"
        amounts = {amount for (amount,) in self._rows("SELECT amount FROM billing.usage_event")}
        assert amounts == {int(Decimal(TOLL) * NANO)}
        sums = (
            "SELECT transaction_id FROM billing.ledger_entry GROUP BY transaction_id HAVING SUM(amount) <> 0"
        )
        assert not self._rows(sums)
        assert not self._rows("SELECT id FROM billing.account WHERE held <> 0 OR leased <> 0")
        assert "the books add up" in self.fleet.command("billing", "check")

    def _open(self) -> tuple[int, int, int]:
        """Count open holds, open leases, and charges that are not booked."""
        holds = "SELECT COUNT(*) FROM billing.hold WHERE state = 'open'"
        leases = "SELECT COUNT(*) FROM billing.lease WHERE state = 'open'"
        unsettled = "SELECT COUNT(*) FROM router.unsettled"
        holds_open, leases_open, waiting = (int(self._rows(q)[0][0]) for q in (holds, leases, unsettled))
        return holds_open, leases_open, waiting


@contextmanager
def running_victims(
    folder: Path, upstream: Upstream, rounds: int
) -> Iterator[tuple[Victims, KillableServer]]:
    """Run a fleet of two processes over a PostgreSQL that can be killed, and its callers."""
    server = KillableServer()
    try:
        server.start()
        environment = {**ENVIRONMENT, "OMNIHUB_DATABASE_URL": server.url}
        with running_fleet(folder, upstream, environment, 1) as fleet:
            victims = Victims(fleet, server.url)
            victims.prepare(rounds)
            yield victims, server
    finally:
        server.remove()
