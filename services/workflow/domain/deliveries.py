"""When a notification is sent again, and what follows an answer."""

from __future__ import annotations

from services.workflow.domain.states import FINAL

PENDING, DELIVERED, DEAD = "pending", "delivered", "dead"
EVENTS = tuple(sorted(f"job.{state}" for state in FINAL))
TEST_EVENT = "webhook.test"

MINUTE, HOUR = 60.0, 3600.0
# Pauses after the first, second ... failure: a little more than a day in all.
PAUSES_S = (
    5.0,
    30.0,
    2 * MINUTE,
    10 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    4 * HOUR,
    8 * HOUR,
    9 * HOUR,
)
# The receiver says that it is gone for good.
GONE = 410


def accepted(http_status: int) -> bool:
    """Tell whether a receiver has taken a notification in."""
    return 200 <= http_status < 300


def pause_after(attempts: int) -> float | None:
    """Return the seconds until the next attempt after `attempts` failed ones; None when it is dead."""
    return PAUSES_S[attempts - 1] if attempts <= len(PAUSES_S) else None
