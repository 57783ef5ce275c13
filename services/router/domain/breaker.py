"""A circuit breaker: who fails again and again is left alone for a while. Pure; the clock is the caller's."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

# Outcomes that are remembered; more would not change the judgement.
MEMORY = 50
# Seconds after a request that failed has begun until another may ask, however long the failing took: who has
# recovered meanwhile is found out within this time.
RETURN_S = 25.0


@dataclass(frozen=True, slots=True)
class Limits:
    """When a circuit opens, and for how long. Times in seconds."""

    failures: int
    """Failures within the window that open it, once they are at least half of all outcomes."""
    window_s: float
    open_s: float
    """How long nobody asks; then one request at a time probes. At most RETURN_S."""


class Breaker:
    """Closed: everyone may ask. Open: nobody. Half-open, once the pause is over: one at a time probes."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=max(MEMORY, 2 * limits.failures))
        self._opened_at = 0.0
        self._until: float | None = None
        """When the pause is over; None when the circuit is closed."""
        self._probe_until = 0.0
        """Until when the running probe has its turn to itself."""

    @property
    def closed(self) -> bool:
        """Tell whether everyone may ask."""
        return self._until is None

    def state(self, now: float) -> str:
        """Return closed, open (nobody asks) or half_open (one at a time probes)."""
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half_open"

    def pause_s(self, now: float) -> float:
        """Return the seconds until somebody may probe; 0 when that is now, or the circuit is closed."""
        if self._until is None:
            return 0.0
        return max(0.0, self._until - now, self._probe_until - now)

    def admits(self, now: float) -> bool:
        """Tell whether a request may ask now. In a half-open circuit the one that may is the probe."""
        if self._until is None:
            return True
        if self.pause_s(now) > 0:
            return False
        # A probe that never tells how it ended must not close the door for ever.
        self._probe_until = now + self._limits.open_s
        return True

    def succeeded(self, now: float, began: float) -> None:
        """Take in a good answer to a request that `began` then. One older than the trouble proves nothing."""
        if self._until is None:
            self._outcomes.append((now, True))
        elif began >= self._opened_at:
            self._until = None
            self._probe_until = 0.0
            self._outcomes.clear()

    def failed(self, now: float, began: float) -> bool:
        """Take in a failure of a request that `began` then. Tells whether it opened the circuit."""
        if self._until is not None:
            if began >= self._opened_at:
                self._open(now, self._pause_after(now, began))
            return False
        self._outcomes.append((now, False))
        while self._outcomes[0][0] <= now - self._limits.window_s:
            self._outcomes.popleft()
        failures = sum(not good for _, good in self._outcomes)
        if failures < self._limits.failures or 2 * failures < len(self._outcomes):
            return False
        self._open(now, self._pause_after(now, began))
        return True

    def _pause_after(self, now: float, began: float) -> float:
        """Return the pause after a failure: one that took long tells of a provider as it was long ago."""
        return max(0.0, min(self._limits.open_s, began + RETURN_S - now))

    def trip(self, now: float, pause_s: float) -> bool:
        """Open at once, for `pause_s`. Tells whether it was closed."""
        was_closed = self._until is None
        self._open(now, pause_s)
        return was_closed

    def caution(self, now: float) -> None:
        """Go half-open at once: somebody else has seen trouble. An open circuit stays as it is."""
        if self._until is None:
            self._open(now, 0.0)

    def released(self) -> None:
        """Take back the turn of a probe whose caller has gone: the next request may probe."""
        self._probe_until = 0.0

    def _open(self, now: float, pause_s: float) -> None:
        self._opened_at = now
        self._until = now + pause_s
        self._probe_until = 0.0
        self._outcomes.clear()
