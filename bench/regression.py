"""The short form for CI: our CPU per request as a multiple of bare Envoy's, in one run of about 20 s.

CPU time, because other programs disturb it least; beside bare Envoy in the same run, because machines
differ; and the cheapest round of each, because a neighbour can only make a round dearer. So the bound can be
near what is measured: 10 to 13.
"""

from __future__ import annotations

from bench.errors import BenchError
from bench.measures import Plan
from bench.results import Results
from bench.run import execute

# The only place of the bound.
ENVOY_RATIO_BOUND = 18.0
PLAN = Plan(["envoy", "omnihub"], ["chat"], rounds=3, seconds=2, warm_up_s=1)


async def measure() -> float:
    """Return our CPU per request divided by bare Envoy's. Raises BenchError when that was not measurable."""
    return ratio(Results(await execute(PLAN)))


def ratio(results: Results) -> float:
    """Return the cheapest round's cost of ours divided by that of bare Envoy's."""
    if results.failures:
        raise BenchError(f"not measured: {results.failures}")
    ours, floor = (results.measure("chat", 0, name, "cpu_us") for name in ("omnihub", "envoy"))
    if ours is None or floor is None or floor.low <= 0:
        raise BenchError("no CPU time was measured")
    return ours.low / floor.low
