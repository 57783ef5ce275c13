"""What is measured of attempts: counts, and durations in fixed buckets. Small, and exact to add up."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

# Each bucket ends a tenth above the one before; the last one begins beyond four hours.
_GROWTH = 1.1
_LOG_GROWTH = math.log(_GROWTH)
_LAST = 175
_PAIR = struct.Struct("<BI")


@dataclass(slots=True)
class Sketch:
    """Durations in milliseconds, each known to a tenth of itself."""

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, milliseconds: float) -> None:
        """Take in one."""
        bucket = math.ceil(math.log(milliseconds) / _LOG_GROWTH) if milliseconds > 1 else 0
        bucket = min(_LAST, bucket)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1

    def include(self, other: Sketch) -> None:
        """Take in all of another."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    def percentile(self, share: float) -> int:
        """Return the milliseconds in which this share of all, such as 0.95, was done; 0 without any."""
        wanted = share * sum(self.counts.values())
        for bucket in sorted(self.counts):
            wanted -= self.counts[bucket]
            if wanted <= 1e-9:
                return max(1, round(_GROWTH**bucket))
        return 0

    def to_bytes(self) -> bytes:
        """Return it as it is stored."""
        return b"".join(_PAIR.pack(bucket, min(count, 2**32 - 1)) for bucket, count in self.counts.items())

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """Read what `to_bytes` wrote."""
        return cls(dict(_PAIR.iter_unpack(data)))


@dataclass(slots=True)
class Tally:
    """What was measured of one model at one provider."""

    attempts: int = 0
    successes: int = 0
    failures: int = 0
    cancelled: int = 0
    latency: Sketch = field(default_factory=Sketch)
    first_token: Sketch = field(default_factory=Sketch)

    def include(self, other: Tally) -> None:
        """Take in all of another."""
        self.attempts += other.attempts
        self.successes += other.successes
        self.failures += other.failures
        self.cancelled += other.cancelled
        self.latency.include(other.latency)
        self.first_token.include(other.first_token)

    @property
    def success_rate(self) -> float:
        """Return the part that succeeded of all that did or failed; 0 when there were none."""
        judged = self.successes + self.failures
        return self.successes / judged if judged else 0.0


def total(tallies: Iterable[Tally]) -> Tally:
    """Return all of them as one."""
    together = Tally()
    for tally in tallies:
        together.include(tally)
    return together
