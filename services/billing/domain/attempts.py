"""Attempts that a provider's export names, beside the attempts that our charges pay for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.billing.domain.provider_export import BilledAttempt


@dataclass(frozen=True, slots=True)
class ChargedAttempts:
    """One of our charges, and how its provider names what it pays for."""

    event_id: str
    model: str
    day: str
    cost: int
    """Nano-credits that we say the provider takes."""
    attempt_ids: Sequence[str]
    counts: bool = True
    """It happened in the days of the export; of others it is only known that they are charged."""


@dataclass(slots=True)
class Unmatched:
    """What one side has and the other has not."""

    attempts: dict[str, BilledAttempt]
    """By the provider's id: nobody is charged for them."""
    charges: list[ChargedAttempts] = field(default_factory=list)
    """None of their attempts is in the export."""
    unnamed: int = 0
    """Charges that name no attempt, so that nothing can be said about them."""

    @property
    def uncharged(self) -> list[tuple[str, BilledAttempt]]:
        """Return the attempts that cost something, the dearest first."""
        costly = [(name, attempt) for name, attempt in self.attempts.items() if attempt.amount]
        return sorted(costly, key=lambda each: (-each[1].amount, each[0]))

    @property
    def unbilled(self) -> list[ChargedAttempts]:
        """Return the charges, the dearest first."""
        return sorted(self.charges, key=lambda charge: (-charge.cost, charge.event_id))


def match(billed: Mapping[str, BilledAttempt], charges: Iterable[ChargedAttempts]) -> Unmatched:
    """Compare both sides by the provider's ids."""
    left = Unmatched(dict(billed))
    for charge in charges:
        matched = [name for name in charge.attempt_ids if name in billed]
        for name in matched:
            left.attempts.pop(name, None)
        if not charge.counts:
            continue
        if not charge.attempt_ids:
            left.unnamed += 1
        elif not matched and charge.cost:
            left.charges.append(charge)
    return left
