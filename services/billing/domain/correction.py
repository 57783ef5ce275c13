"""Corrections of what was booked: refunds, reversals, and which booking of a charge is the valid one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from services.billing.domain.errors import InvalidFieldError
from services.billing.domain.ledger import LARGEST_AMOUNT
from services.credits.money import format_nano, nano_of

REFUND, CORRECTION, REVERSAL = "refund", "correction", "reversal"


@dataclass(frozen=True, slots=True)
class Request:
    """What an administrator asks for; `id` makes it happen once."""

    id: str
    subject: str
    """The charge or the grant."""
    amount: int = 0
    """Nano-credits; a refund of 0 is all that is left."""
    cost: int | None = None
    """Nano-credits; None leaves the cost as it was."""
    note: str = ""
    actor: str = ""

    @property
    def fingerprint(self) -> str:
        """Return what must be equal when the same id comes again."""
        content = json.dumps([self.subject, self.amount, self.cost, self.note])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Booking:
    """The transaction that holds a charge now, and where in it."""

    transaction_id: str
    start: int
    """Nano-credits of the transaction that were paid before this charge."""
    amount: int
    cost: int
    refunded: int = 0

    @property
    def left(self) -> int:
        """Return what can still be refunded."""
        return self.amount - self.refunded


@dataclass(frozen=True, slots=True)
class Step:
    """A correction that has been booked."""

    kind: str
    transaction_id: str
    """Of the new booking, when there is one."""
    amount: int
    cost: int


def current(original: Booking, steps: Iterable[Step]) -> Booking:
    """Return the booking that is valid after corrections, in the order they were made."""
    booking = original
    for step in steps:
        if step.kind == REFUND:
            booking = replace(booking, refunded=booking.refunded + step.amount)
        else:
            booking = Booking(step.transaction_id, 0, step.amount, step.cost)
    return booking


def refund_of(booking: Booking, requested: int) -> int:
    """Return how much is refunded. Raises InvalidFieldError when there is not so much left."""
    amount = requested or booking.left
    if not amount:
        raise InvalidFieldError("charge_id", "names a charge of which nothing is left to refund")
    if amount > booking.left:
        raise InvalidFieldError(
            "amount", f"must be at most {format_nano(booking.left)}, what is left of the charge"
        )
    return amount


def amount_of(name: str, amount: float) -> int:
    """Return credits of a request in nano-credits. Raises InvalidFieldError."""
    try:
        nano = nano_of(amount)
    except ValueError as error:
        raise InvalidFieldError(name, str(error)) from None
    if not 0 <= nano <= LARGEST_AMOUNT:
        raise InvalidFieldError(name, f"must be between 0 and {format_nano(LARGEST_AMOUNT)}")
    return nano
