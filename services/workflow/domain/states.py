"""The states of jobs and attempts, and the ways between them."""

from __future__ import annotations

from collections.abc import Mapping

QUEUED = "queued"
RUNNING = "running"
CANCEL_REQUESTED = "cancel_requested"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"
EXPIRED = "expired"

FINAL = frozenset({SUCCEEDED, FAILED, CANCELLED, EXPIRED})
JOB_STATES = frozenset({QUEUED, RUNNING, CANCEL_REQUESTED, *FINAL})

# An attempt waits for a worker, waits for room at its provider, is with a worker, or has been accepted by
# its provider and waits for it.
DISPATCHED = "dispatched"
PARKED = "parked"
CLAIMED = "claimed"
ACCEPTED = "accepted"
# Nobody works on these.
IDLE = (DISPATCHED, PARKED)
ATTEMPT_FINAL = frozenset({SUCCEEDED, FAILED, CANCELLED})

_NEXT: Mapping[str, frozenset[str]] = {
    # A job without a worker can be cancelled at once, and its deadline can pass.
    QUEUED: frozenset({RUNNING, CANCELLED, EXPIRED, FAILED}),
    # A failed attempt that is tried again puts the job back into its queue.
    RUNNING: frozenset({QUEUED, CANCEL_REQUESTED, SUCCEEDED, FAILED, CANCELLED, EXPIRED}),
    # What the provider had finished before it heard of the cancellation counts.
    CANCEL_REQUESTED: frozenset({SUCCEEDED, FAILED, CANCELLED, EXPIRED}),
    **{state: frozenset() for state in FINAL},
}


def may_become(state: str, following: str) -> bool:
    """Tell whether a job may go from one state to another."""
    return following in _NEXT[state]


def is_over(state: str, settled: bool, parallel: bool) -> bool:
    """Tell whether there is nothing more to wait for: neither a result nor what it costs.

    What providers still make of an expired job, or as losers of a race, may take long, and is paid when it is
    there: who waits for the job does not wait for that.
    """
    return state in FINAL and (settled or parallel or state == EXPIRED)
