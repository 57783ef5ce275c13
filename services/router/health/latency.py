"""Measured latency of each target, smoothed, and forgotten when it gets old."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from services.router.domain.catalogue import Target

# Weight of the newest answer: about ten answers are remembered.
WEIGHT = 0.1
# What was measured longer ago says little of now. Who was slow once is not asked again for it, so nothing
# would ever be measured that proves the contrary: from then on it counts as average, like what never was.
KEPT_S = 900.0
# Callers can name any model of a provider; names must not fill the memory.
TARGETS = 10_000
_UNKNOWN = (0.0, 0.0)


class Latencies:
    """Milliseconds until the answer of each target was complete."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._smoothed: dict[Target, tuple[float, float]] = {}
        """Milliseconds, and until when they count."""

    def observe(self, target: Target, milliseconds: float) -> None:
        """Take in one answer."""
        now = self._clock()
        before, until = self._smoothed.get(target, _UNKNOWN)
        smoothed = before + WEIGHT * (milliseconds - before) if now < until else milliseconds
        if target not in self._smoothed and len(self._smoothed) >= TARGETS:
            self._smoothed.pop(next(iter(self._smoothed)))
        self._smoothed[target] = smoothed, now + KEPT_S

    def of(self, target: Target) -> int:
        """Return the smoothed latency in milliseconds; 0 without an answer of late."""
        return self.of_all((target,))[0]

    def of_all(self, targets: Iterable[Target]) -> list[int]:
        """Return the same for each of many."""
        now, known = self._clock(), self._smoothed
        found = [known.get(target, _UNKNOWN) for target in targets]
        return [round(milliseconds) if now < until else 0 for milliseconds, until in found]
