"""Samples to medians, spreads and ratios."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.client import percentile
from bench.run import Sample

SERIES = ("last_byte", "first_token")
ALL_ROUNDS = 99.9
"""A percentile that one round has too few requests for."""


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest value over the rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int) -> str:
        """Return `median (low to high)`, or the median alone when there was one value."""
        if self.low == self.high:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: list[float]) -> Spread | None:
    """Return the spread of the values, or None when there are none."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


Key = tuple[str, int, str]
"""Scenario, size, subject."""


class Results:
    """All samples by scenario, size, subject and round; latencies are added to `direct` of the same round."""

    def __init__(self, samples: list[Sample]) -> None:
        failed = [sample for sample in samples if sample.failure]
        self.failures = {(sample.scenario, sample.size, sample.subject): sample.failure for sample in failed}
        self.failed_in = {(sample.scenario, sample.size, sample.subject): sample.round for sample in failed}
        """The round of each failure; -1 when it was not measured at all."""
        self._values: dict[Key, dict[int, dict[str, float]]] = {}
        self._latencies: dict[tuple[Key, str], list[float]] = {}
        for sample in samples:
            if sample.failure:
                continue
            key = (sample.scenario, sample.size, sample.subject)
            self._values.setdefault(key, {})[sample.round] = dict(sample.values)
            for series, latencies in sample.latencies.items():
                self._latencies.setdefault((key, series), []).extend(latencies)
        for (scenario, size, subject), rounds in self._values.items():
            if subject != "direct":
                self._add_latencies(rounds, self._values.get((scenario, size, "direct"), {}))

    @staticmethod
    def _add_latencies(rounds: dict[int, dict[str, float]], direct: dict[int, dict[str, float]]) -> None:
        for number, values in rounds.items():
            for name in [name for name in values if name.startswith(SERIES)]:
                if name in direct.get(number, {}):
                    values[f"added_{name}"] = values[name] - direct[number][name]

    def measure(self, scenario: str, size: int, subject: str, name: str) -> Spread | None:
        """Return the spread of one value over the rounds."""
        rounds = self._values.get((scenario, size, subject), {})
        return spread([values[name] for values in rounds.values() if name in values])

    def names(self, scenario: str, size: int, subject: str) -> list[str]:
        """Return the names of all values."""
        rounds = self._values.get((scenario, size, subject), {})
        return list(dict.fromkeys(name for values in rounds.values() for name in values))

    def rare(self, scenario: str, subject: str, series: str) -> float | None:
        """Return the added p99.9 in ms, over the requests of all rounds together."""
        mine = self._latencies.get(((scenario, 0, subject), series))
        direct = self._latencies.get(((scenario, 0, "direct"), series))
        if not mine or not direct or subject == "direct":
            return None
        return percentile(mine, ALL_ROUNDS) - percentile(direct, ALL_ROUNDS)

    def ratio(self, scenario: str, name: str, over: str, under: str) -> Spread | None:
        """Return the spread of `over`'s value divided by `under`'s in the same round.

        None when a subject has no values, or when a value is zero or less: then it drowned in noise.
        """
        return self._ratio((scenario, 0, over), (scenario, 0, under), name)

    def growth(self, scenario: str, size: int, smallest: int, subject: str, name: str) -> Spread | None:
        """Return the spread of a value at one size divided by that at the smallest, in the same round."""
        return self._ratio((scenario, size, subject), (scenario, smallest, subject), name)

    def _ratio(self, over: Key, under: Key, name: str) -> Spread | None:
        mine, others = self._values.get(over, {}), self._values.get(under, {})
        pairs = [
            (mine[number].get(name, 0.0), others[number].get(name, 0.0))
            for number in mine
            if number in others
        ]
        if not all(one > 0 < other for one, other in pairs):
            return None
        return spread([one / other for one, other in pairs])

    def largest(self, name: str) -> float:
        """Return the largest value of that name of all samples."""
        rounds = (values for by_round in self._values.values() for values in by_round.values())
        return max((values[name] for values in rounds if name in values), default=0.0)
