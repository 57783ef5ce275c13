"""What becomes of a cloned voice whose consent was revoked, when its provider is asked to remove it."""

from __future__ import annotations

from services.workflow.domain.deliveries import pause_after

KEPT, REMOVING, REMOVED, LEFT = "kept", "removing", "removed", "left"
# It would say the same tomorrow.
_FINAL = frozenset({"NOT_IMPLEMENTED", "PARAMETER_UNSUPPORTED", "PROVIDER_REJECTED", "NOT_FOUND"})


def pause_before_next(reason: str, attempts: int, state: str) -> float | None:
    """Return the seconds until a provider is asked again after `attempts` failed ones; None for never.

    What was given up and has been sent again by hand is asked for once.
    """
    if reason in _FINAL or state == LEFT:
        return None
    return pause_after(attempts)
