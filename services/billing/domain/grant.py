"""Credits that are given."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from services.billing.domain.errors import InvalidFieldError
from services.credits.money import format_nano, nano_of

LONGEST_NOTE = 500


@dataclass(frozen=True, slots=True)
class Grant:
    """`amount` nano-credits for an organisation; `id` makes it happen once."""

    id: str
    organisation_id: str
    amount: int
    note: str = ""
    actor: str = ""

    @property
    def fingerprint(self) -> str:
        """Return what must be equal when the same id comes again."""
        content = json.dumps([self.organisation_id, self.amount, self.note])
        return hashlib.sha256(content.encode()).hexdigest()


def requested_grant(
    organisation_id: str, amount: float, key: str, note: str, actor: str, largest: int
) -> Grant:
    """Return the grant an administrator asks for. Raises InvalidFieldError."""
    if len(note) > LONGEST_NOTE or "\0" in note:
        raise InvalidFieldError("note", f"must have at most {LONGEST_NOTE} characters, none of them NUL")
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
    return Grant(f"grant:admin:{key}", organisation_id, nano, note, actor)


def welcome_grant(organisation_id: str, bootstrap: bool, bootstrap_amount: int, free_amount: int) -> Grant:
    """Return what a new organisation gets; its amount may be 0."""
    if bootstrap:
        return Grant(f"grant:bootstrap:{organisation_id}", organisation_id, bootstrap_amount)
    return Grant(f"grant:free:{organisation_id}", organisation_id, free_amount)
