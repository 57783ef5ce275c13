"""What billing refuses. `reason` names a row of ErrorReason; the transport does the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from services.credits.money import format_nano


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong, and what to do about it."""

    field: str
    description: str


class BillingError(Exception):
    """Base of all refusals."""

    reason: ClassVar[str]
    retry_after_s: float | None = None

    def __init__(self, message: str, *, violations: Sequence[Violation] = (), **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.metadata = metadata


class InvalidFieldError(BillingError):
    """A field is wrong."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", violations=[Violation(field, description)])
        self.field, self.description = field, description


class NotFoundError(BillingError):
    """There is no such thing."""

    reason = "NOT_FOUND"


class AlreadyEndedError(BillingError):
    """A hold or lease cannot be used any more."""

    reason = "PRECONDITION_FAILED"


class AccountClosedError(BillingError):
    """An administrator has closed the organisation's account."""

    reason = "ACCOUNT_CLOSED"


class IdempotencyKeyReusedError(BillingError):
    """The id was used with other content."""

    reason = "IDEMPOTENCY_KEY_REUSED"


class ManagedByFileError(BillingError):
    """The configuration file declares it."""

    reason = "MANAGED_BY_FILE"


class PriceUnknownError(BillingError):
    """Nobody knows the price."""

    reason = "PRICE_UNKNOWN"


class MissingOrganisationError(BillingError):
    """The call acts for no organisation."""

    reason = "MISSING_CREDENTIAL"


class InsufficientCreditsError(BillingError):
    """The balance does not cover the amount, whatever happens to running requests."""

    reason = "INSUFFICIENT_CREDITS"


class InFlightBudgetExhaustedError(BillingError):
    """The balance would cover the amount, but running requests hold it."""

    reason = "IN_FLIGHT_BUDGET_EXHAUSTED"


class EstimateExceedsBudgetError(BillingError):
    """One request may use more than the whole limit."""

    reason = "ESTIMATE_EXCEEDS_BUDGET"


class BudgetLimitError(BillingError):
    """A window is used up."""

    reason = "BUDGET_LIMIT"


class RateLimitedError(BillingError):
    """Too many requests, tokens or requests at the same time."""

    reason = "RATE_LIMITED"

    def __init__(self, message: str, retry_after_s: float, **metadata: str) -> None:
        super().__init__(message, violations=(), **metadata)
        self.retry_after_s = retry_after_s


class PermissionDeniedError(BillingError):
    """The caller may not do this."""

    reason = "PERMISSION_DENIED"


class PreconditionFailedError(BillingError):
    """The thing is not in a state that allows this."""

    reason = "PRECONDITION_FAILED"


def account_closed(organisation_id: str) -> AccountClosedError:
    """Say that an account is closed, and what to do."""
    return AccountClosedError(
        f"the account of {organisation_id} is closed; an administrator of the platform can reopen it",
        organisation_id=organisation_id,
    )


def kept_refusal(error: BillingError) -> str:
    """Return a refusal as the text that is stored, for `restored_refusal`."""
    return json.dumps([error.reason, error.message, error.metadata])


def restored_refusal(kept: str, retry_after_s: float) -> BillingError:
    """Return a refusal that was given before: the same id gets the same answer."""
    reason, message, metadata = json.loads(kept)
    kinds = (
        InsufficientCreditsError,
        InFlightBudgetExhaustedError,
        AccountClosedError,
        EstimateExceedsBudgetError,
        BudgetLimitError,
    )
    error: BillingError
    if reason == RateLimitedError.reason:
        error = RateLimitedError(message, retry_after_s)
    else:
        error = {kind.reason: kind for kind in kinds}[reason](message)
    error.metadata = metadata
    if isinstance(error, InFlightBudgetExhaustedError):
        error.retry_after_s = retry_after_s
    return error


def refusal(required: int, posted: int, available: int, retry_after_s: float) -> BillingError:
    """Say why `required` nano-credits cannot be reserved."""
    if posted < required:
        return InsufficientCreditsError(
            f"the balance of {format_nano(posted)} credits does not cover {format_nano(required)}; "
            "add credits",
            required=format_nano(required),
            available=format_nano(available),
        )
    error = InFlightBudgetExhaustedError(
        f"{format_nano(required)} credits are needed, {format_nano(available)} are available: running "
        "requests hold the rest; retry shortly",
        required=format_nano(required),
        available=format_nano(available),
    )
    error.retry_after_s = retry_after_s
    return error
