"""A provider's usage export against our books: sums by model and day, and attempts where it names them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal

from services.billing.domain.attempts import Unmatched, match
from services.billing.domain.provider_export import Export, read_export
from services.billing.domain.reconciliation import Compared, Tolerance, compare, text_of
from services.billing.domain.usage import DAY_0
from services.billing.store.reports import ATTEMPT_ONLY, CHARGE_ONLY, RECONCILIATION, Difference, Reports
from services.credits.money import format_nano

DAY_US = 86_400_000_000
# Single attempts and charges that are kept of each side; whoever finds that many needs no more.
LISTED = 1000
NOT_CHARGED = "the provider charges for this attempt, no charge of ours pays for it"
NOT_BILLED = "we charged for it, the provider's export of these days does not have it"


@dataclass(slots=True)
class Reconciled:
    """What came out."""

    compared: list[Compared]
    attempts: int
    unmatched: Unmatched
    differences: list[Difference] = field(default_factory=list)

    @property
    def agreed(self) -> int:
        """Return how many models and days agree."""
        return sum(each.agrees for each in self.compared)

    @property
    def theirs(self) -> Decimal:
        """Return all that the provider charges."""
        return sum((each.theirs or Decimal(0) for each in self.compared), Decimal(0))

    @property
    def ours(self) -> Decimal:
        """Return all that we computed."""
        return sum((each.ours or Decimal(0) for each in self.compared), Decimal(0))


async def reconcile(
    reports: Reports, tolerance: Tolerance, provider: str, shape: str, document: str, now: int
) -> Reconciled:
    """Compare a document, and keep what differs. Raises InvalidFieldError; then nothing is kept."""
    export = read_export(document, shape, provider)
    days = sorted(date.fromisoformat(day) for _, day in export.bill)
    start, end = _start_of(days[0]), _start_of(days[-1] + timedelta(days=1))
    costs = {
        (model, (DAY_0 + timedelta(days=int(number))).isoformat()): cost
        for (model, number), cost in (await reports.costs_by_model(provider, start, end)).items()
    }
    unmatched = Unmatched({})
    if export.attempts:
        unmatched = match(export.attempts, await reports.charged_attempts(provider, start, end))
    found = Reconciled(list(compare(export.bill, costs, tolerance)), len(export.attempts), unmatched)
    found.differences = [*_of_sums(found, export, provider), *_of_attempts(found, provider)]
    await reports.keep(found.differences, now)
    return found


def _of_sums(found: Reconciled, export: Export, provider: str) -> Iterator[Difference]:
    for each in found.compared:
        if each.agrees:
            continue
        kind = RECONCILIATION
        if each.ours is None or each.theirs is None:
            if export.attempts and not found.unmatched.unnamed:
                # What one side has alone is told attempt by attempt.
                continue
            kind = ATTEMPT_ONLY if each.ours is None else CHARGE_ONLY
        yield Difference(
            kind,
            text_of(each.ours),
            text_of(each.theirs),
            each.reason,
            provider=provider,
            model=each.model,
            day=each.day,
        )


def _of_attempts(found: Reconciled, provider: str) -> Iterator[Difference]:
    for name, attempt in found.unmatched.uncharged[:LISTED]:
        yield Difference(
            ATTEMPT_ONLY,
            "",
            text_of(attempt.amount),
            NOT_CHARGED,
            provider=provider,
            model=attempt.model,
            day=attempt.day,
            attempt_id=name,
        )
    for charge in found.unmatched.unbilled[:LISTED]:
        yield Difference(
            CHARGE_ONLY,
            format_nano(charge.cost),
            "",
            NOT_BILLED,
            event_id=charge.event_id,
            provider=provider,
            model=charge.model,
            day=charge.day,
            attempt_id=charge.attempt_ids[0],
        )


def _start_of(day: date) -> int:
    return (day - DAY_0).days * DAY_US
