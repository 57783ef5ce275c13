"""Measured latency of each target, smoothed."""

from __future__ import annotations

from services.router.domain.catalogue import Target

# Weight of the newest answer: about ten answers are remembered.
WEIGHT = 0.1


class Latencies:
    """Milliseconds until the answer of each target was complete."""

    def __init__(self) -> None:
        self._smoothed: dict[Target, float] = {}

    def observe(self, target: Target, milliseconds: float) -> None:
        """Take in one answer."""
        before = self._smoothed.get(target, milliseconds)
        self._smoothed[target] = before + WEIGHT * (milliseconds - before)

    def of(self, target: Target) -> int:
        """Return the smoothed latency in milliseconds; 0 before the first answer."""
        return round(self._smoothed.get(target, 0))
