"""What an organisation's credits consist of: grants that are used up in order, and what it owes.

A `Posting` is one transaction in the making. `Purse` is the only place that decides which grant pays,
what expires and where a refund goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.billing.domain.accounts import BREAKAGE, PAID, PROMO, PROMO_EXPENSE, RECEIVABLE, account_of
from services.billing.domain.grant import PAID as PAID_GRANT

# Everything that happens to what is left of a grant. Of a grant that expires they are its breakage: planned
# when given, released by use, reopened by a refund, and booked as breakage in the end.
PLAN, RELEASE, REOPEN, EXPIRE, REVERSE = "plan", "release", "reopen", "expire", "reverse"
# Used to pay what was owed before the grant came, and that taken back.
COVER, UNCOVER = "cover", "uncover"
RAISING = (PLAN, REOPEN, UNCOVER)


@dataclass(frozen=True, slots=True)
class Movement:
    """What a transaction does to a grant; `amount` is never negative, `kind` tells the direction."""

    grant_id: str
    kind: str
    amount: int


@dataclass(slots=True)
class Posting:
    """One transaction in the making; it sums to zero because credits only move."""

    id: str
    kind: str
    organisation_id: str = ""
    fingerprint: str = ""
    actor: str = ""
    note: str = ""
    refers_to: str = ""
    """The transaction this one corrects."""
    entries: dict[str, int] = field(default_factory=dict)
    movements: list[Movement] = field(default_factory=list)

    def move(self, source: str, target: str, amount: int) -> None:
        """Move nano-credits from one account to another."""
        self.entries[source] = self.entries.get(source, 0) - amount
        self.entries[target] = self.entries.get(target, 0) + amount


@dataclass(slots=True)
class Slice:
    """What is left of a grant."""

    grant_id: str
    kind: str
    priority: int
    expires_at: int | None
    created_at: int
    remaining: int

    @property
    def paid(self) -> bool:
        """Tell whether somebody gave money for it."""
        return self.kind == PAID_GRANT

    @property
    def order(self) -> tuple[int, bool, int, int, str]:
        """Return what the order of use is sorted by."""
        return (self.priority, self.expires_at is None, self.expires_at or 0, self.created_at, self.grant_id)

    def expired(self, now: int) -> bool:
        """Tell whether its time is over."""
        return self.expires_at is not None and self.expires_at <= now


class Purse:
    """The grants of one organisation, changed by the transactions of one database transaction.

    `posted` is the wallet's balance: what it lacks of the sum of the grants is owed.
    """

    def __init__(self, organisation_id: str, slices: Iterable[Slice], posted: int, reserved: int = 0) -> None:
        self.organisation_id = organisation_id
        self.slices = {slice_.grant_id: slice_ for slice_ in slices}
        self.owed = max(0, sum(slice_.remaining for slice_ in self.slices.values()) - posted)
        self.reserved = reserved
        """What running requests hold and processes lease."""

    @property
    def posted(self) -> int:
        """Return the balance."""
        return sum(slice_.remaining for slice_ in self.slices.values()) - self.owed

    def charge(self, posting: Posting, amount: int, revenue: str, now: int) -> None:
        """Pay `amount`: from valid grants in order, then expired ones still reserved, then on credit."""
        for slice_ in self._valid(now) + self._expired(now):
            part = min(slice_.remaining, amount)
            self._take(posting, slice_, RELEASE, part, revenue)
            amount -= part
        if amount:
            posting.move(self._account(RECEIVABLE), revenue, amount)
            self.owed += amount

    def expire(self, posting: Posting, now: int) -> int:
        """Book what has expired, but not what running requests have reserved. Returns how much."""
        booked = 0
        for slice_ in self._expired(now):
            part = min(slice_.remaining, max(0, self.posted - self.reserved))
            # Nobody paid for a promotion: its end is no revenue.
            self._take(posting, slice_, EXPIRE, part, BREAKAGE if slice_.paid else PROMO_EXPENSE)
            booked += part
        return booked

    def add(self, posting: Posting, slice_: Slice, source: str, now: int) -> None:
        """Add a grant, and pay with it what is owed."""
        posting.move(source, self._account_of(slice_), slice_.remaining)
        posting.movements.append(Movement(slice_.grant_id, PLAN, slice_.remaining))
        self.slices[slice_.grant_id] = slice_
        self._cover(posting, now)

    def reverse(self, posting: Posting, slice_: Slice, source: str, amount: int) -> None:
        """Take back what is left of a grant."""
        self._take(posting, slice_, REVERSE, amount, source)

    def restore(
        self,
        posting: Posting,
        parts: Sequence[tuple[str | None, int]],
        covered: Sequence[tuple[str, int]],
        revenue: str,
        now: int,
    ) -> None:
        """Give back `parts` of a charge, the last paid first; None is what was on credit.

        `covered` is what grants have paid of former debts, the latest first: a debt that has been paid
        since goes back to those. Then what is still owed is paid.
        """
        cover = dict(covered)
        for grant_id, amount in parts:
            if grant_id is not None:
                self._give(posting, self.slices[grant_id], REOPEN, amount, revenue)
                continue
            forgiven = min(self.owed, amount)
            if forgiven:
                posting.move(revenue, self._account(RECEIVABLE), forgiven)
                self.owed -= forgiven
            amount -= forgiven
            for payer in list(cover):
                part = min(cover[payer], amount)
                self._give(posting, self.slices[payer], UNCOVER, part, revenue)
                cover[payer] -= part
                amount -= part
        self._cover(posting, now)

    def _cover(self, posting: Posting, now: int) -> None:
        for slice_ in self._valid(now):
            part = min(slice_.remaining, self.owed)
            self._take(posting, slice_, COVER, part, self._account(RECEIVABLE))
            self.owed -= part

    def _take(self, posting: Posting, slice_: Slice, kind: str, amount: int, target: str) -> None:
        if amount:
            slice_.remaining -= amount
            posting.move(self._account_of(slice_), target, amount)
            posting.movements.append(Movement(slice_.grant_id, kind, amount))

    def _give(self, posting: Posting, slice_: Slice, kind: str, amount: int, source: str) -> None:
        if amount:
            slice_.remaining += amount
            posting.move(source, self._account_of(slice_), amount)
            posting.movements.append(Movement(slice_.grant_id, kind, amount))

    def _valid(self, now: int) -> list[Slice]:
        return sorted((s for s in self.slices.values() if not s.expired(now)), key=lambda s: s.order)

    def _expired(self, now: int) -> list[Slice]:
        return sorted((s for s in self.slices.values() if s.expired(now)), key=lambda s: s.order)

    def _account_of(self, slice_: Slice) -> str:
        return self._account(PAID if slice_.paid else PROMO)

    def _account(self, kind: str) -> str:
        return account_of(kind, self.organisation_id)


def burned(releases: Sequence[tuple[str, int]], start: int, length: int) -> list[tuple[str | None, int]]:
    """Return who paid for a part of a transaction, in the order of paying.

    `releases` are (grant, amount) of the whole transaction; what lies beyond them was on credit.
    """
    parts: list[tuple[str | None, int]] = []
    position, end = 0, start + length
    for grant_id, amount in releases:
        part = min(position + amount, end) - max(position, start)
        if part > 0:
            parts.append((grant_id, part))
        position += amount
    on_credit = end - max(position, start)
    if on_credit > 0:
        parts.append((None, on_credit))
    return parts
