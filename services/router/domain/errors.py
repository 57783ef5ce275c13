"""What can be wrong with a request before any provider is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flaw:
    """One field that is wrong, and what to do about it."""

    field: str
    description: str


class RoutingError(Exception):
    """A request cannot be routed. `reason` is a row of the error table."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: Mapping[str, str] = metadata


class ModelNotFoundError(RoutingError):
    """No such model."""

    reason = "MODEL_NOT_FOUND"


class ModelNotAllowedError(RoutingError):
    """The key may not use the model."""

    reason = "MODEL_NOT_ALLOWED"


class NoCandidateError(RoutingError):
    """The constraints exclude every model."""

    reason = "NO_CANDIDATE"


class PriceUnknownError(RoutingError):
    """The model has no price, so its use could not be paid."""

    reason = "PRICE_UNKNOWN"
