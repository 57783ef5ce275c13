"""What follows a failed attempt: the same target again, the next one, or the end."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

# Attempts at one target before the next one is asked.
ATTEMPTS_PER_TARGET = 3
BACK_OFF_S = (2.0, 8.0, 30.0)
# A provider's own wish is honoured up to here.
LONGEST_WAIT_S = 600.0

# The job itself is at fault: another provider would say the same.
_FINAL = frozenset(
    {
        "INVALID_ARGUMENT",
        "MALFORMED_BODY",
        "PARAMETER_UNSUPPORTED",
        "PROVIDER_REJECTED",
        "CONTENT_FILTERED",
        "CONSENT_REQUIRED",
        "URL_REFUSED",
        "UNSUPPORTED_MEDIA",
        "CANCELLED",
        "NOT_FOUND",
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended badly."""

    reason: str
    message: str
    retryable: bool = False
    retry_after_s: float = 0.0
    doubtful: bool = False
    """The provider may have accepted it all the same."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Another attempt at the target of this index, after a pause."""

    target_index: int
    after_s: float


def decide(
    failure: Failure, target_index: int, targets: int, attempts_at_target: int, seed: str
) -> Retry | None:
    """Return the next attempt, or None when the job has failed.

    `attempts_at_target` counts the failed one. `seed` spreads pauses: the same attempt always waits the same
    time, attempts that failed together do not return together.
    """
    if failure.reason in _FINAL:
        return None
    if failure.retryable and attempts_at_target < ATTEMPTS_PER_TARGET:
        pause = BACK_OFF_S[min(attempts_at_target, len(BACK_OFF_S)) - 1] * _jitter(seed)
        return Retry(target_index, min(LONGEST_WAIT_S, max(pause, failure.retry_after_s)))
    if target_index + 1 < targets:
        return Retry(target_index + 1, 0.0)
    return None


def _jitter(seed: str) -> float:
    """Return a number from 0.5 to 1, the same for the same seed."""
    digest = hashlib.blake2b(seed.encode(), digest_size=4).digest()
    return 0.5 + int.from_bytes(digest, "big") / 2**33
