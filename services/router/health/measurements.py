"""What this process has measured of each model at each provider, minute by minute, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from services.router.domain.catalogue import Target
from services.router.domain.sketch import Tally, total

MINUTES = 15
"""How many minutes stay in memory."""
# Callers can name any model of a provider; names must not fill the memory.
TARGETS = 10_000
# Fewer first tokens say nothing about how long the slow ones take.
ENOUGH = 20
SILENCE_MS = 1000
"""How long a candidate may be silent of which too little is known."""


class Measurements:
    """The tallies of the last minutes."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._minutes: dict[Target, dict[int, Tally]] = {}
        self._changed: set[tuple[Target, int]] = set()

    def _now(self, target: Target) -> Tally:
        """Return the tally of the running minute, which is about to change."""
        minute = int(self._clock() // 60)
        self._changed.add((target, minute))
        minutes = self._minutes.get(target)
        if minutes is None:
            if len(self._minutes) >= TARGETS:
                self._minutes.pop(next(iter(self._minutes)))
            minutes = self._minutes[target] = {}
        tally = minutes.get(minute)
        if tally is None:
            tally = minutes[minute] = Tally()
            for old in [known for known in minutes if known <= minute - MINUTES]:
                del minutes[old]
        return tally

    def succeeded(self, target: Target) -> None:
        """Take in an answer, or the beginning of one."""
        tally = self._now(target)
        tally.attempts += 1
        tally.successes += 1

    def failed(self, target: Target, begun: bool = False) -> None:
        """Take in a failure; one after an answer had `begun` takes its success back."""
        tally = self._now(target)
        tally.failures += 1
        if not begun:
            tally.attempts += 1
        elif tally.successes:
            tally.successes -= 1

    def refused(self, target: Target) -> None:
        """Take in an attempt that failed for what was asked."""
        self._now(target).attempts += 1

    def cancelled(self, target: Target) -> None:
        """Take in an attempt that was stopped from here."""
        tally = self._now(target)
        tally.attempts += 1
        tally.cancelled += 1

    def first_token(self, target: Target, milliseconds: float) -> None:
        """Take in how long a stream was silent."""
        self._now(target).first_token.add(milliseconds)

    def latency(self, target: Target, milliseconds: float) -> None:
        """Take in how long a whole answer took."""
        self._now(target).latency.add(milliseconds)

    def silence_ms(self, target: Target, streamed: bool) -> int:
        """Return in how long 95 % of a target's answers begin, or are there when they are not streamed."""
        known = self.window(target, MINUTES)
        sketch = known.first_token if streamed else known.latency
        return sketch.percentile(0.95) if sum(sketch.counts.values()) >= ENOUGH else SILENCE_MS

    def window(self, target: Target, minutes: int) -> Tally:
        """Return the last minutes as one."""
        first = int(self._clock() // 60) - minutes
        return total(tally for minute, tally in self._minutes.get(target, {}).items() if minute > first)

    def targets(self) -> list[Target]:
        """Return everything that was measured."""
        return list(self._minutes)

    def take_changed(self) -> Iterator[tuple[Target, int, Tally]]:
        """Yield each minute that has changed since the last time: target, minute since 1970, tally."""
        changed, self._changed = self._changed, set()
        for target, minute in changed:
            tally = self._minutes.get(target, {}).get(minute)
            if tally is not None:
                yield target, minute, tally
