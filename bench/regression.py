"""The short form for CI: our CPU per request as a multiple of bare Envoy's, in one run of about 20 s.

CPU time, because other programs disturb it least; a ratio of the same round, because machines differ; and the
median, because any one round may be disturbed.
"""

from __future__ import annotations

from bench.errors import BenchError
from bench.measures import Plan
from bench.results import Results, Spread
from bench.run import execute

# The only place of the bound.
ENVOY_RATIO_BOUND = 26.0
PLAN = Plan(["envoy", "omnihub"], ["chat"], rounds=3, seconds=2, warm_up_s=1)


async def measure() -> Spread:
    """Return our CPU per request divided by bare Envoy's. Raises BenchError when that was not measurable."""
    results = Results(await execute(PLAN))
    if results.failures:
        raise BenchError(f"not measured: {results.failures}")
    found = results.ratio("chat", "cpu_us", "omnihub", "envoy")
    if found is None:
        raise BenchError("no CPU time was measured")
    return found
