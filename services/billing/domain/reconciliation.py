"""Comparing a provider's bill with our cost, by model and day."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal

from services.billing.domain.provider_export import Bill
from services.credits.money import NANO

_EXACT = Context(prec=80)
_DATED = re.compile(r"-?(\d{4}-?\d{2}-?\d{2}|latest)$")
_SEPARATORS = re.compile(r"[\s._]+")


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two sides may be apart: part of the bill or credits, whichever is more."""

    percent: Decimal
    credits: Decimal

    def allows(self, theirs: Decimal, ours: Decimal) -> bool:
        """Tell whether the difference is small enough."""
        part = _EXACT.multiply(_EXACT.divide(self.percent, Decimal(100)), max(abs(theirs), abs(ours)))
        return abs(_EXACT.subtract(theirs, ours)) <= max(part, self.credits)


@dataclass(frozen=True, slots=True)
class Compared:
    """One model and day, seen from both sides; None where a side has nothing."""

    model: str
    day: str
    theirs: Decimal | None
    ours: Decimal | None
    agrees: bool

    @property
    def reason(self) -> str:
        """Say what is wrong."""
        if self.ours is None:
            return "the provider charges for it, we know nothing of it"
        if self.theirs is None:
            return "we computed a cost, the provider's export does not have it"
        return "the amounts differ by more than the tolerance"


def comparable(model: str) -> str:
    """Return what names of a model have in common, as `Claude Haiku 4.5` and `claude-haiku-4-5-20251001`."""
    plain = _SEPARATORS.sub("-", model.strip().lower())
    return _DATED.sub("", plain) or plain


def compare(theirs: Bill, ours: Mapping[tuple[str, str], int], tolerance: Tolerance) -> Iterator[Compared]:
    """Yield every model and day that one side has, by name. `ours`: nano-credits by model and day."""
    bills: dict[tuple[str, str], Decimal] = {}
    names: dict[str, str] = {}
    for (model, day), amount in theirs.items():
        key = comparable(model), day
        names.setdefault(key[0], model)
        bills[key] = _EXACT.add(bills.get(key, Decimal(0)), amount)
    costs: dict[tuple[str, str], int] = {}
    for (model, day), nano in ours.items():
        key = comparable(model), day
        names[key[0]] = model
        costs[key] = costs.get(key, 0) + nano
    for key in sorted(bills.keys() | costs.keys()):
        bill = bills.get(key)
        cost = _EXACT.divide(Decimal(costs[key]), Decimal(NANO)) if key in costs else None
        agrees = tolerance.allows(bill or Decimal(0), cost or Decimal(0))
        if bill is None or cost is None:
            # What one side does not know at all is no rounding.
            agrees = not (bill or cost)
        yield Compared(names[key[0]], key[1], bill, cost, agrees)


def text_of(amount: Decimal | None) -> str:
    """Return an amount without an exponent; empty when there is none."""
    if amount is None:
        return ""
    text = f"{amount:f}"
    return (text.rstrip("0").rstrip(".") or "0") if "." in text else text
