"""What the ledger must do, in memory and without any code under test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Grant:
    grant_id: str
    amount: int
    kind: str
    priority: int
    expires_at: int | None
    created_at: int
    remaining: int = 0
    answered: int = 0

    @property
    def order(self) -> tuple[Any, ...]:
        return (self.priority, self.expires_at or 10**30, self.created_at, self.grant_id)


@dataclass
class Charge:
    amount: int
    cost: int
    # Who paid, in order; None is credit.
    parts: list[tuple[str | None, int]] = field(default_factory=list)

    @property
    def left(self) -> int:
        return sum(amount for _, amount in self.parts)


class Model:
    """One organisation."""

    def __init__(self) -> None:
        self.owed = 0
        self.late = False
        self.closed = False
        self.grants: dict[str, Grant] = {}
        self.covered: dict[str, int] = {}
        self.holds: dict[str, dict[str, Any]] = {}
        self.leases: dict[str, dict[str, Any]] = {}
        self.charges: dict[str, Charge] = {}
        self.bodies: dict[str, Any] = {}
        """What charges were booked with, by their ids."""
        # Answers of corrections by key: they stay the same for ever.
        self.corrections: dict[str, tuple[Any, Any]] = {}
        self.revenue = 0
        self.costs = 0
        self.rounding_pico = 0

    @property
    def posted(self) -> int:
        return sum(grant.remaining for grant in self.grants.values()) - self.owed

    @property
    def held(self) -> int:
        return sum(hold["amount"] for hold in self.holds.values() if hold["state"] == "open")

    @property
    def leased(self) -> int:
        still_open = [lease for lease in self.leases.values() if lease["state"] == "open"]
        return sum(max(0, lease["granted"] - lease["spent"]) for lease in still_open)

    @property
    def available(self) -> int:
        return self.posted - self.held - self.leased

    def refusal(self, amount: int) -> str:
        if self.closed:
            return "ACCOUNT_CLOSED"
        return "INSUFFICIENT_CREDITS" if self.posted < amount else "IN_FLIGHT_BUDGET_EXHAUSTED"

    def allows(self, amount: int) -> bool:
        return not self.closed and self.available >= amount

    def valid(self, now: int) -> list[Grant]:
        """The grants that may pay, in burn order. I10."""
        left = [g for g in self.grants.values() if g.expires_at is None or g.expires_at > now]
        return sorted(left, key=lambda grant: grant.order)

    def expired(self, now: int) -> list[Grant]:
        over = [g for g in self.grants.values() if g.expires_at is not None and g.expires_at <= now]
        return sorted(over, key=lambda grant: grant.order)

    def grant(self, grant: Grant, now: int) -> int:
        grant.remaining = grant.amount
        self.grants[grant.grant_id] = grant
        self.cover(now)
        grant.answered = self.posted
        return grant.answered

    def cover(self, now: int) -> None:
        for grant in self.valid(now):
            part = min(grant.remaining, self.owed)
            grant.remaining -= part
            self.owed -= part
            self.covered[grant.grant_id] = self.covered.get(grant.grant_id, 0) + part

    def expire(self, now: int) -> None:
        """What running requests have reserved does not expire under them. I10."""
        for grant in self.expired(now):
            grant.remaining -= min(grant.remaining, max(0, self.available))

    def pay(self, amount: int, now: int) -> list[tuple[str | None, int]]:
        parts: list[tuple[str | None, int]] = []
        for grant in self.valid(now) + self.expired(now):
            part = min(grant.remaining, amount)
            if part:
                grant.remaining -= part
                amount -= part
                parts.append((grant.grant_id, part))
        if amount:
            self.owed += amount
            parts.append((None, amount))
        return parts

    def settle(self, charges: list[Any], now: int) -> int:
        """Book those that are new; each is (id, amount, lease, hold, cost, rounding), ordered by id."""
        fresh = [each for each in sorted(charges) if each[0] not in self.charges]
        if not fresh:
            return 0
        self.expire(now)
        captured: dict[str, int] = {}
        for _, amount, lease_id, hold_id, _, _ in fresh:
            self._end(amount, lease_id, hold_id, captured)
        for hold_id in captured:
            self.holds[hold_id]["state"] = "captured"
        for charge_id, amount, _, _, cost, rounding in fresh:
            self.charges[charge_id] = Charge(amount, cost, self.pay(amount, now))
            self.revenue += amount
            self.costs += cost
            self.rounding_pico += rounding
        return len(fresh)

    def _end(self, amount: int, lease_id: str, hold_id: str, captured: dict[str, int]) -> None:
        hold, lease = self.holds.get(hold_id), self.leases.get(lease_id)
        if hold is not None and hold["state"] == "open":
            # The charges of a batch that share a hold capture it together.
            captured[hold_id] = captured.get(hold_id, 0) + amount
            self.late |= captured[hold_id] > hold["amount"]
        elif not hold_id and lease is not None and lease["state"] == "open":
            self.late |= amount > max(0, lease["granted"] - lease["spent"])
            lease["spent"] += amount
        else:
            self.late = True

    def give_back(self, charge: Charge, amount: int, now: int) -> None:
        """Restore what a charge took: the last that paid gets it back first. I11."""
        self.revenue -= amount
        while amount:
            payer, paid = charge.parts.pop()
            part = min(paid, amount)
            if paid > part:
                charge.parts.append((payer, paid - part))
            amount -= part
            if payer is not None:
                self.grants[payer].remaining += part
                continue
            forgiven = min(self.owed, part)
            self.owed -= forgiven
            part -= forgiven
            latest = sorted(
                (g for g in self.grants.values() if self.covered.get(g.grant_id)),
                key=lambda grant: (grant.created_at, grant.grant_id),
                reverse=True,
            )
            for grant in latest:
                back = min(self.covered[grant.grant_id], part)
                self.covered[grant.grant_id] -= back
                grant.remaining += back
                part -= back
            assert part == 0
        self.cover(now)
