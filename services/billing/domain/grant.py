"""Credits that are given."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from services.billing.domain.accounts import MANUAL, PROMO_EXPENSE, clearing_of
from services.billing.domain.errors import InvalidFieldError
from services.billing.domain.ledger import check_amount, check_id
from services.credits.money import format_nano, nano_of

LONGEST_NOTE = 500
LONGEST_PERIOD = 30
PAID, PROMO, ALLOWANCE = "paid", "promo", "allowance"
# What expires with the month is used first, what somebody paid for last.
PRIORITIES = {ALLOWANCE: 10, PROMO: 20, PAID: 30}
LOWEST_PRIORITY = 255


@dataclass(frozen=True, slots=True)
class Grant:
    """`amount` nano-credits for an organisation; `id` makes it happen once.

    Grants burn by `priority` (small numbers first), then the earlier expiry, then the earlier creation.
    """

    id: str
    organisation_id: str
    amount: int
    note: str = ""
    actor: str = ""
    kind: str = PROMO
    priority: int = PRIORITIES[PROMO]
    expires_at: int | None = None
    """Microseconds since 1970; None is never."""
    processor: str = MANUAL
    """Who took the money for paid credits; payment providers put their name here."""

    @property
    def source(self) -> str:
        """Return the account the credits come from."""
        return clearing_of(self.processor) if self.kind == PAID else PROMO_EXPENSE

    @property
    def fingerprint(self) -> str:
        """Return what must be equal when the same id comes again."""
        fields = [self.organisation_id, self.amount, self.note, self.kind, self.priority, self.expires_at]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def allowance_grant(
    organisation_id: str, period: str, amount: int, expires_at: int, actor: str = ""
) -> Grant:
    """Return the allowance of `period`, such as `2026-01`: one for each organisation and period, for ever.

    `amount` in nano-credits, `expires_at` in microseconds since 1970. Raises InvalidFieldError.
    """
    check_id("organisation_id", organisation_id)
    check_id("period", period)
    if len(period) > LONGEST_PERIOD:
        raise InvalidFieldError("period", f"is longer than {LONGEST_PERIOD} characters")
    check_amount("amount_nano_credits", amount)
    return Grant(
        f"grant:allowance:{period}:{organisation_id}",
        organisation_id,
        amount,
        f"allowance {period}",
        actor,
        ALLOWANCE,
        PRIORITIES[ALLOWANCE],
        expires_at,
    )


def requested_grant(
    organisation_id: str,
    amount: float,
    key: str,
    note: str,
    actor: str,
    largest: int,
    *,
    kind: str = "",
    priority: int | None = None,
    expires_at: int | None = None,
) -> Grant:
    """Return the grant an administrator asks for. Raises InvalidFieldError."""
    check_note(note)
    if not key:
        raise InvalidFieldError("idempotency_key", "is empty; send any string that is unique to this grant")
    try:
        nano = nano_of(amount)
    except ValueError as error:
        raise InvalidFieldError("amount", str(error)) from None
    if nano <= 0:
        raise InvalidFieldError("amount", "must be greater than 0")
    if nano > largest:
        raise InvalidFieldError("amount", f"must be at most {format_nano(largest)} credits in one grant")
    kind = kind or PAID
    if kind not in PRIORITIES:
        raise InvalidFieldError("kind", f"must be one of {', '.join(PRIORITIES)}, or empty for {PAID}")
    if priority is not None and not 0 <= priority <= LOWEST_PRIORITY:
        raise InvalidFieldError("priority", f"must be between 0 and {LOWEST_PRIORITY}")
    return Grant(
        f"grant:admin:{key}",
        organisation_id,
        nano,
        note,
        actor,
        kind,
        PRIORITIES[kind] if priority is None else priority,
        expires_at,
    )


def check_note(note: str) -> None:
    """Refuse a note that cannot be kept."""
    if len(note) > LONGEST_NOTE or "\0" in note:
        raise InvalidFieldError("note", f"must have at most {LONGEST_NOTE} characters, none of them NUL")


def welcome_grant(organisation_id: str, bootstrap: bool, bootstrap_amount: int, free_amount: int) -> Grant:
    """Return what a new organisation gets; its amount may be 0."""
    if bootstrap:
        return Grant(f"grant:bootstrap:{organisation_id}", organisation_id, bootstrap_amount)
    return Grant(f"grant:free:{organisation_id}", organisation_id, free_amount)
