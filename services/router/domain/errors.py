"""What can be wrong with a request before any provider is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
        self.plan: Any = None
        """What was looked at before nothing was left; None when it did not come to that."""


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


class ConflictingOptionsError(RoutingError):
    """Two wishes say the opposite of each other."""

    def __init__(self, one: str, one_value: str, other: str, other_value: str) -> None:
        text = f"{one} {one_value!r} and {other} {other_value!r} say the opposite; send one of them"
        super().__init__(text, constraint=one, conflicts_with=other)
        self.violations = (Flaw(one, text), Flaw(other, text))


class InvalidPolicyError(RoutingError):
    """A routing policy cannot be read."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}")
        self.violations = (Flaw(field, text),)
