"""What planning costs beside a bare loop that computes the same scores: `python -m bench.planning`.

Both go through the same candidates and both ask for each one's price and latency. The bare loop scores and
sorts and does nothing else; the planner also filters, explains and keeps what a decision records. Prints
the least processor time of several rounds, interleaved: what the work takes when nobody disturbs it.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence

from services.router.domain.catalogue import Model, Target
from services.router.domain.policy import Option, Question, decide, exclude, room_of
from services.router.domain.routing import Weights
from services.router.settings import RouteSettings

SIZES = (10, 30, 100, 300, 1000)
ROUNDS = 25
OPERATIONS = 3000
"""Candidates looked at in one round, at least."""
FEATURES = frozenset({"chat", "stream"})
QUESTION = Question(
    requested="auto",
    scored=True,
    task="coding",
    weights=Weights(0.35, 0.15, 0.5),
    max_cost=10**12,
    input_tokens=400,
    output_tokens=4096,
)
PRICES = tuple[tuple[int, int], ...]

Work = Callable[[], object]


def options(count: int) -> list[Option]:
    """Return candidates like those of a catalogue."""
    dice = random.Random(count)
    return [
        Option(
            Target("wall", f"model-{number}"),
            Model(f"model-{number}", (Target("wall", f"model-{number}"),), RouteSettings(route=["wall/x"])),
            features=FEATURES,
            strengths={"coding": dice.random(), "chat": dice.random()},
            context_length=200_000,
            max_output=8192,
        )
        for number in range(count)
    ]


def prices(count: int) -> PRICES:
    """Return input and output prices in pico-credits per token."""
    dice = random.Random(count + 1)
    return tuple((dice.randrange(10**5, 10**7), dice.randrange(10**6, 10**8)) for _ in range(count))


def bare(candidates: Sequence[Option], known: PRICES, latencies: Sequence[int], weights: Weights) -> Work:
    """Return the loop that anybody would write."""

    def work() -> list[tuple[float, Option]]:
        estimates = [(400 * given + 4096 * taken) // 1000 for given, taken in known]
        dearest, slowest = max(estimates), max(latencies)
        scored = [
            (
                weights.cost * (1 - estimate / dearest)
                + weights.latency * (1 - latency / slowest)
                + weights.task * option.strengths.get("coding", 0.0),
                option,
            )
            for option, estimate, latency in zip(candidates, estimates, latencies, strict=True)
        ]
        scored.sort(key=lambda each: each[0], reverse=True)
        return scored

    return work


def planned(candidates: Sequence[Option], known: PRICES, latencies: Sequence[int]) -> Work:
    """Return what the router does for a request, the filters that it keeps between requests kept."""
    kept = [exclude(option, QUESTION) for option in candidates]
    room = room_of(candidates)

    def work() -> object:
        estimates = [(400 * given + 4096 * taken) // 1000 for given, taken in known]
        return decide(QUESTION, candidates, kept, estimates, latencies, room=room)

    return work


def microseconds(work: Work, times: int) -> float:
    """Return how long one run takes."""
    started = time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - started) / times * 1e6


def measure(count: int) -> tuple[float, float]:
    """Return the times of the bare loop and of planning, in microseconds."""
    candidates, known = options(count), prices(count)
    latencies = [100 + 37 * number % 900 for number in range(count)]
    works = (bare(candidates, known, latencies, QUESTION.weights), planned(candidates, known, latencies))
    times = max(3, OPERATIONS // count)
    rounds = [[microseconds(work, times) for work in works] for _ in range(ROUNDS)]
    bare_us, planned_us = (min(column) for column in zip(*rounds, strict=True))
    return bare_us, planned_us


def main() -> None:
    """Print the table."""
    # As the service does when it has started.
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    print(f"{'models':>7}  {'bare loop us':>12}  {'planning us':>11}  {'ratio':>5}  {'us/model':>8}")
    for count in SIZES:
        bare_us, planned_us = measure(count)
        ratio = planned_us / bare_us
        print(f"{count:>7}  {bare_us:>12.1f}  {planned_us:>11.1f}  {ratio:>5.2f}  {planned_us / count:>8.3f}")


if __name__ == "__main__":
    main()
