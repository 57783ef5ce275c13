"""The scenarios: what is asked of whom, how it is configured, what is measured. This table is their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.measures import Chunks, ColdStart, FixedRate, IdleStreams, Measure, Saturation
from bench.subjects.base import Setup

CONNECTIONS = 8


@dataclass(frozen=True)
class Case:
    """A scenario at one of its sizes."""

    scenario: str
    size: int
    setup: Setup
    measure: Measure


@dataclass(frozen=True)
class Scenario:
    """One row of measurements for each subject. With `sizes`, one for each size: the row must stay flat."""

    name: str
    title: str
    measure: Callable[[int], Measure]
    setup: Callable[[int], Setup] = lambda _: Setup()
    sizes: tuple[int, ...] = ()
    unit: str = ""
    """What a size counts."""

    def cases(self) -> Iterator[Case]:
        """Yield the scenario at each size."""
        for size in self.sizes or (0,):
            yield Case(self.name, size, self.setup(size), self.measure(size))


def saturated(
    kind: str, connections: int = CONNECTIONS, *, from_upstream: bool = True
) -> Callable[[int], Measure]:
    """Return what measures as many requests of a kind as get through."""
    return lambda _: Saturation(kind, connections, from_upstream)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("chat", "Small chat completion", saturated("chat")),
        Scenario("large", "A prompt of 100 kB", saturated("large")),
        Scenario("stream-50", "Stream of 50 content chunks, sent at once", saturated("stream50", 4)),
        Scenario("stream-500", "Stream of 500 content chunks, sent at once", saturated("stream500", 4)),
        Scenario("embeddings", "Embedding of 1,536 numbers", saturated("embeddings")),
        Scenario("tools", "Eight tools in the request, two calls in the answer", saturated("tools")),
        Scenario("translated", "OpenAI's format in, Anthropic's upstream", saturated("translated")),
        Scenario(
            "cache-hit",
            "Small chat completion, answered from the gateway's cache",
            saturated("cached", from_upstream=False),
            lambda _: Setup(cache=True),
        ),
        Scenario("latency", "Small chat completion, 50 a second", lambda _: FixedRate("chat", 50)),
        Scenario("first-token", "Stream of 50 chunks, 20 a second", lambda _: FixedRate("stream50", 20)),
        Scenario("chunks", "200 streams with a chunk every 50 ms each", lambda _: Chunks()),
        Scenario("idle-streams", "1,000 open streams with a chunk every 2 s each", lambda _: IdleStreams()),
        Scenario("cold-start", "From start to the first answer, without any data", lambda _: ColdStart()),
        Scenario(
            "growth-connections",
            "Small chat completion by number of connections",
            lambda size: Saturation("chat", size),
            sizes=(1, 4, 16),
            unit="connections",
        ),
        Scenario(
            "growth-models",
            "Small chat completion by number of models, all of them asked for",
            saturated("chat"),
            lambda size: Setup(models=size),
            sizes=(10, 100, 1000),
            unit="models",
        ),
        Scenario(
            "growth-keys",
            "Small chat completion by number of keys, at most 1,000 of them in use",
            saturated("chat"),
            lambda size: Setup(keys=size),
            sizes=(10, 1000, 100_000),
            unit="keys",
        ),
        Scenario(
            "new-keys",
            "Small chat completion, each with a key that was not used before, of 100,000",
            saturated("chat"),
            lambda _: Setup(keys=100_000, all_keys=True),
        ),
    )
}
