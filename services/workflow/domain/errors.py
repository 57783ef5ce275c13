"""What jobs refuse. `reason` names a row of ErrorReason; the transport does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong, and what to do about it."""

    field: str
    description: str


class JobError(Exception):
    """Base of all refusals."""

    reason: ClassVar[str]
    retry_after_s: float | None = None

    def __init__(self, message: str, *, violations: Sequence[Violation] = (), **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.metadata = metadata


class InvalidInputError(JobError):
    """A field is wrong."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", violations=[Violation(field, description)])


class JobNotFoundError(JobError):
    """There is no such job, for this key."""

    reason = "NOT_FOUND"


class IdempotencyKeyReusedError(JobError):
    """The key began another job."""

    reason = "IDEMPOTENCY_KEY_REUSED"


class JobNotEndedError(JobError):
    """Only an ended job can be removed."""

    reason = "PRECONDITION_FAILED"


class DeadLetterNotFoundError(JobError):
    """There is no such dead letter."""

    reason = "NOT_FOUND"
