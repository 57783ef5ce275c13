"""The rules of settling: what a batch of charges does to leases, holds and balances."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as with_default

from omnihub.billing.v1.usage_pb2 import Charge

from services.billing.domain.accounts import wallet_of
from services.billing.domain.errors import InvalidFieldError

# 1,000,000,000 credits: no balance and no single amount is larger, so that sums stay inside 64 bits.
LARGEST_AMOUNT = 10**18
LONGEST_ID = 160
LONGEST_NAME = 200
LATEST_SECOND = 253_402_300_799
CURRENCIES = ("", "CREDIT", "USD")
PICO_PER_NANO = 1000


def check_amount(name: str, amount: int, *, zero: bool = False) -> None:
    """Refuse an amount of nano-credits that is negative, zero (unless allowed) or absurd."""
    if amount < 0 or (amount == 0 and not zero):
        raise InvalidFieldError(name, "must be greater than 0" if not zero else "must not be negative")
    if amount > LARGEST_AMOUNT:
        raise InvalidFieldError(name, f"must be at most {LARGEST_AMOUNT} nano-credits")


def check_id(name: str, value: str) -> None:
    """Refuse an id that cannot be stored."""
    if not value:
        raise InvalidFieldError(name, "is empty")
    if len(value) > LONGEST_ID:
        raise InvalidFieldError(name, f"is longer than {LONGEST_ID} characters")
    if "\0" in value:
        raise InvalidFieldError(name, "contains the character NUL")


def check_currency(name: str, currency: str) -> None:
    """Refuse a currency other than credits, which are US dollars."""
    if currency not in CURRENCIES:
        raise InvalidFieldError(
            name, f"{currency[:10]!r} is not known; send CREDIT or USD, which are the same"
        )


def cost_of(charge: Charge) -> int:
    """Return what the provider takes for a charge; unless it says otherwise, the price is the cost."""
    return charge.cost_nano_credits if charge.HasField("cost_nano_credits") else charge.amount_nano_credits


def check_name(name: str, value: str) -> None:
    """Refuse the id of a transaction or grant that cannot exist."""
    if not value or len(value) > LONGEST_NAME or "\0" in value:
        raise InvalidFieldError(name, f"must have 1 to {LONGEST_NAME} characters, none of them NUL")


def check_charges(charges: Iterable[Charge]) -> None:
    """Refuse a batch with a charge that cannot be booked, naming it."""
    for index, charge in enumerate(charges):
        try:
            _check_charge(charge)
        except InvalidFieldError as error:
            raise InvalidFieldError(f"charges[{index}].{error.field}", error.description) from None


def _check_charge(charge: Charge) -> None:
    check_id("charge_id", charge.charge_id)
    check_id("organisation_id", charge.organisation_id)
    check_amount("amount_nano_credits", charge.amount_nano_credits, zero=True)
    check_amount("cost_nano_credits", charge.cost_nano_credits, zero=True)
    if charge.rounding_pico_credits >= PICO_PER_NANO * max(1, len(charge.parts)):
        raise InvalidFieldError("rounding_pico_credits", "must be less than a nano-credit for each part")
    check_currency("currency", charge.currency)
    if abs(charge.savings_nano_credits) > LARGEST_AMOUNT:
        raise InvalidFieldError("savings_nano_credits", "is larger than any charge")
    if not 0 <= charge.at.seconds <= LATEST_SECOND:
        raise InvalidFieldError("at", "must be between the years 1970 and 9999")


def at_of(charge: Charge, now: int) -> int:
    """Return when a charge's request came, in microseconds; without a time of its own it is `now`."""
    # Several times faster than Timestamp.ToMicroseconds.
    return charge.at.seconds * 1_000_000 + charge.at.nanos // 1000 if charge.HasField("at") else now


def slice_of(available: int, wanted: int, minimum: int) -> int:
    """Return how much a lease gets, 0 when that would be less than `minimum`."""
    share = min(max(wanted, minimum), available)
    return share if share >= minimum else 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A slice that one process spends in memory."""

    id: str
    account_id: str
    granted: int
    spent: int
    open: bool

    @property
    def rest(self) -> int:
        """Return what is still reserved for it, or what was returned when it closed."""
        return max(0, self.granted - self.spent)


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation for one request."""

    id: str
    account_id: str
    amount: int
    open: bool


@dataclass(slots=True)
class Change:
    """What happens to one account, in nano-credits, as sums to subtract."""

    posted: int = 0
    held: int = 0
    leased: int = 0


@dataclass(slots=True)
class Settlement:
    """What a batch of charges does."""

    accounts: dict[str, Change] = with_default(default_factory=dict)
    spent: dict[str, int] = with_default(default_factory=dict)
    """By lease."""
    captured: dict[str, int] = with_default(default_factory=dict)
    """By hold, never more than the hold."""


def is_late(charge: Charge, leases: Mapping[str, Lease], holds: Mapping[str, Hold]) -> bool:
    """Tell whether what the charge was reserved by has ended. Such a charge is booked all the same."""
    reservation: Lease | Hold | None
    if charge.hold_id:
        reservation = holds.get(charge.hold_id)
    elif charge.lease_id:
        reservation = leases.get(charge.lease_id)
    else:
        return False
    if reservation is None or not reservation.open:
        return True
    return reservation.account_id != wallet_of(charge.organisation_id)


def settle(
    charges: Iterable[Charge],
    leases: Mapping[str, Lease],
    holds: Mapping[str, Hold],
    late: Container[str],
) -> Settlement:
    """Sum up what `charges`, all of them new, do to accounts, leases and holds. `late` are ids.

    The first capture ends a hold and releases its rest; a charge above its hold or lease is booked in
    full, because the provider has been paid.
    """
    settlement = Settlement()
    changes: dict[str, Change] = {}
    for charge in charges:
        change = changes.get(charge.organisation_id)
        if change is None:
            change = changes[charge.organisation_id] = Change()
            settlement.accounts[wallet_of(charge.organisation_id)] = change
        change.posted += charge.amount_nano_credits
        if charge.charge_id in late:
            continue
        if charge.hold_id:
            _sum(settlement.captured, charge.hold_id, charge.amount_nano_credits)
        elif charge.lease_id:
            _sum(settlement.spent, charge.lease_id, charge.amount_nano_credits)
    for lease_id, amount in settlement.spent.items():
        lease = leases[lease_id]
        settlement.accounts[lease.account_id].leased += min(amount, lease.rest)
    for hold_id, amount in settlement.captured.items():
        hold = holds[hold_id]
        settlement.accounts[hold.account_id].held += hold.amount
        settlement.captured[hold_id] = min(amount, hold.amount)
    return settlement


def _sum(sums: dict[str, int], key: str, amount: int) -> None:
    sums[key] = sums.get(key, 0) + amount
