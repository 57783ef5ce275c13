"""How a case is measured: load, and the values that come of it. Units are in the names of the values."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

from bench.client import OPEN_BEFORE, constant_rate, drained, percentile, visit
from bench.load import Load, check_answer, saturate
from bench.meter import Meter, Values
from bench.payload import KINDS, Target
from bench.streams import chunk_cost, stream_weight
from bench.subjects.base import ACTIVE_KEYS, Running
from bench.upstream import Upstream

MEBIBYTE = 1024 * 1024
PERCENTS = (50, 90, 99)
OPEN_CONNECTIONS = 4
SLICES = 12
"""Each round begins with other keys and models than the rounds before it."""


@dataclass(frozen=True)
class Plan:
    """What one invocation does. Times in seconds."""

    subjects: list[str]
    scenarios: list[str]
    rounds: int = 5
    seconds: float = 2
    constant_seconds: float = 6
    warm_up_s: float = 1
    awake: bool = False


@dataclass(frozen=True)
class Tools:
    """What measurements are made with."""

    plan: Plan
    wrk: str
    script: Path
    upstream: Upstream


@dataclass
class Measured:
    """The values of one sample. `latencies`, in ms, are kept for percentiles over all rounds."""

    values: Values
    latencies: dict[str, list[float]] = field(default_factory=dict)


class Measure(ABC):
    """One way to measure. `once`: not again in later rounds. `starts`: measures starting, too."""

    once = False
    starts = False

    async def prepare(self, tools: Tools, running: Running) -> None:  # noqa: B027 - some need nothing
        """See that the answer is right, and warm up."""

    @abstractmethod
    async def run(self, tools: Tools, running: Running, number: int) -> Measured:
        """Measure once; `number` is the round."""


@dataclass(frozen=True)
class Saturation(Measure):
    """As many requests as get through over so many connections."""

    kind: str
    connections: int
    from_upstream: bool = True

    async def prepare(self, tools: Tools, running: Running) -> None:
        """Check the answer and run unmeasured load, so that caches are filled and connections pooled."""
        kind = KINDS[self.kind]
        target = running.target(kind)
        await check_answer(kind, target)
        if len(target.variants) <= ACTIVE_KEYS:
            await visit(target, self.connections)
        await self._load(tools, target, tools.plan.warm_up_s, -1)

    async def _load(self, tools: Tools, target: Target, seconds: float, number: int) -> Load:
        if KINDS[self.kind].streamed:
            return await drained(target, seconds, self.connections)
        first = (number + 1) * len(target.variants) // SLICES
        return await saturate(
            tools.wrk, target, seconds, tools.script, connections=self.connections, first=first
        )

    async def run(self, tools: Tools, running: Running, number: int) -> Measured:
        """Measure requests/s and CPU."""
        meter = Meter(running, tools.upstream)
        await meter.start()
        result = await self._load(tools, running.target(KINDS[self.kind]), tools.plan.seconds, number)
        # wrk leaves requests unanswered when its time is over.
        in_flight = 0 if KINDS[self.kind].streamed else self.connections
        values = await meter.stop(result.requests, in_flight, from_upstream=self.from_upstream)
        memory = running.server.tree.memory_bytes() / MEBIBYTE
        rate = result.requests / result.seconds
        return Measured(values | {"requests_per_s": rate, "memory_mib": memory})


@dataclass(frozen=True)
class FixedRate(Measure):
    """Latency at so many requests per second."""

    kind: str
    rate: float

    async def prepare(self, tools: Tools, running: Running) -> None:
        """Check and warm up as for saturation: latency without it would be that of a first request."""
        await Saturation(self.kind, OPEN_CONNECTIONS).prepare(tools, running)

    async def run(self, tools: Tools, running: Running, number: int) -> Measured:
        """Measure latencies and CPU."""
        meter = Meter(running, tools.upstream)
        await meter.start()
        target = running.target(KINDS[self.kind])
        found = await constant_rate(target, self.rate, tools.plan.constant_seconds)
        values = await meter.stop(len(found.last_byte) + OPEN_BEFORE)
        latencies = {"last_byte": found.last_byte}
        if found.first_token:
            latencies["first_token"] = found.first_token
        for name, series in latencies.items():
            values |= {f"{name}_p{percent}_ms": percentile(series, percent) for percent in PERCENTS}
        values["client_late_p99_ms"] = percentile(found.late, 99)
        return Measured(values, latencies)


@dataclass(frozen=True)
class Chunks(Measure):
    """What a chunk costs that comes alone."""

    async def run(self, tools: Tools, running: Running, number: int) -> Measured:
        """Measure CPU per chunk."""
        target = running.target(KINDS["paced50"])
        return Measured(await chunk_cost(running.server.tree, target, tools.plan.seconds))


@dataclass(frozen=True)
class IdleStreams(Measure):
    """What an open stream weighs, in a process that has just been started and in one round.

    Memory once used is not given back: after other scenarios a part of it would already be there.
    """

    once = True
    starts = True

    async def run(self, tools: Tools, running: Running, number: int) -> Measured:
        """Measure memory per stream."""
        chat = KINDS["chat"]
        await check_answer(chat, running.target(chat))
        return Measured(await stream_weight(running.server.tree, running.target(KINDS["paced2000"])))


@dataclass(frozen=True)
class ColdStart(Measure):
    """From the start of the process to its first answer; `running` has just been started."""

    starts = True

    async def run(self, tools: Tools, running: Running, number: int) -> Measured:
        """Measure time, CPU and memory of the start."""
        kind = KINDS["chat"]
        asked = time.monotonic()
        await check_answer(kind, running.target(kind))
        seconds = running.server.ready_after_s + time.monotonic() - asked
        tree = running.server.tree
        memory = tree.memory_bytes() / MEBIBYTE
        return Measured({"start_s": seconds, "start_cpu_s": tree.cpu_seconds(), "memory_mib": memory})
