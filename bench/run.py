"""Starts everything, runs the interleaved rounds and returns the samples."""

import shutil
import statistics
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import BenchError
from bench.install import WORK, require_programs
from bench.load import check_answers, constant_rate, percentile, saturate
from bench.measure import machine_cpu_seconds, own_cpu_seconds
from bench.payload import Target
from bench.processes import Ports
from bench.streams import chunk_cost, stream_weight
from bench.subjects import SUBJECTS, Place, Subject
from bench.upstream import Upstream, upstreams

MEBIBYTE = 1024 * 1024
Values = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What one invocation does. Times in seconds, `rate` in requests per second."""

    subjects: list[str]
    rounds: int = 3
    saturation_s: float = 5
    constant_s: float = 10
    warm_up_s: float = 2
    rate: float = 50
    streaming: bool = True


@dataclass
class Sample:
    """One subject in one round: the values of each scenario by name, units in the names."""

    round: int
    subject: str
    saturation: Values = field(default_factory=dict)
    streaming: Values = field(default_factory=dict)
    constant: Values = field(default_factory=dict)
    chunks: Values = field(default_factory=dict)
    open_streams: Values = field(default_factory=dict)
    """Only in the first round: memory that has been used once is not given back."""
    memory_mib: float = 0.0


class Meter:
    """CPU between entry and settling: of the subject, the upstream, and of strangers on the machine."""

    def __init__(self, subject: Subject, upstream: Upstream) -> None:
        self._trees = {
            subject.server.tree.root: subject.server.tree,
            upstream.server.tree.root: upstream.server.tree,
        }
        self._subject = subject.server.tree
        self._upstream = upstream

    async def start(self) -> None:
        """Read all counters."""
        await self._subject.settle()
        self._served = await self._upstream.requests_served()
        self._before = self._read()

    def _read(self) -> tuple[float, float, float, float]:
        """Return the time, the subject's CPU, strangers' CPU and stolen CPU, in seconds since some start."""
        busy, stolen = machine_cpu_seconds()
        ours = own_cpu_seconds() + sum(tree.cpu_seconds() for tree in self._trees.values())
        return time.monotonic(), self._subject.cpu_seconds(), busy - ours, stolen

    async def stop(self, requests: int) -> Values:
        """Return CPU in us per request and the noise in cores; raise when the upstream saw fewer requests."""
        await self._subject.settle()
        now = self._read()
        seconds, cpu, others, stolen = (
            after - before for after, before in zip(now, self._before, strict=True)
        )
        served = await self._upstream.requests_served() - self._served - 1
        if served < requests:
            raise BenchError(
                f"only {served} of {requests} requests reached the upstream: answered from a cache?"
            )
        return {
            "cpu_us_per_request": cpu * 1e6 / requests,
            "upstream_requests": served,
            "other_programs_cores": max(0.0, others / seconds),
            "stolen_cores": stolen / seconds,
        }


class Bench:
    """The started subjects and the load that is put on them, one at a time."""

    def __init__(self, plan: Plan, wrk: str, directory: Path, upstream: Upstream) -> None:
        self._plan = plan
        self._wrk = wrk
        self._script = directory / "wrk.lua"
        self._upstream = upstream

    async def warm_up(self, subject: Subject) -> None:
        """Check the answers and run unmeasured load, so that caches are filled and connections pooled."""
        await check_answers(subject.chat, subject.stream if self._plan.streaming else None)
        await saturate(self._wrk, subject.chat, self._plan.warm_up_s, self._script)
        if self._plan.streaming:
            await saturate(self._wrk, subject.stream, self._plan.warm_up_s, self._script)

    async def saturation(self, subject: Subject, target: Target) -> Values:
        """Return requests/s, latency and CPU under as much load as the connections carry."""
        meter = Meter(subject, self._upstream)
        await meter.start()
        result = await saturate(self._wrk, target, self._plan.saturation_s, self._script)
        values = await meter.stop(result.requests)
        rate = result.requests / result.seconds
        return (
            {"requests": result.requests, "requests_per_second": rate}
            | values
            | {
                "p50_ms": result.p50_ms,
                "p99_ms": result.p99_ms,
            }
        )

    async def constant(self, subject: Subject) -> Values:
        """Return latency and CPU at the plan's constant rate."""
        meter = Meter(subject, self._upstream)
        await meter.start()
        result = await constant_rate(subject.chat, self._plan.rate, self._plan.constant_s)
        values = await meter.stop(len(result.latencies_ms))
        return (
            {"requests": len(result.latencies_ms)}
            | values
            | {
                "mean_ms": statistics.fmean(result.latencies_ms),
                "p50_ms": percentile(result.latencies_ms, 50),
                "p99_ms": percentile(result.latencies_ms, 99),
                "max_ms": max(result.latencies_ms),
                "client_lateness_p99_ms": percentile(result.lateness_ms, 99),
            }
        )

    async def sample(self, number: int, subject: Subject) -> Sample:
        """Run every scenario once against one subject."""
        subject.server.check()
        sample = Sample(number, subject.name)
        # What `direct` costs is the upstream's own.
        between = self._plan.streaming and subject.name != "direct"
        if between and number == 0:
            sample.open_streams = await stream_weight(subject.server.tree, subject.slow)
        sample.saturation = await self.saturation(subject, subject.chat)
        if self._plan.streaming:
            sample.streaming = await self.saturation(subject, subject.stream)
        if between:
            sample.chunks = await chunk_cost(subject.server.tree, subject.paced, self._plan.saturation_s)
        sample.constant = await self.constant(subject)
        sample.memory_mib = subject.server.tree.memory_bytes() / MEBIBYTE
        return sample


def prepare_folders() -> tuple[Path, Path]:
    """Return an empty folder for data and one for logs.

    Both are on the disk of the repository: a temporary folder may be memory, where syncing costs nothing.
    """
    data, logs = WORK / "data", WORK / "logs"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    logs.mkdir(exist_ok=True)
    return data, logs


def progress(text: str) -> None:
    """Tell the person who waits; standard output is for the report alone."""
    print(text, file=sys.stderr, flush=True)


async def execute(plan: Plan) -> list[Sample]:
    """Start every subject, run all rounds, stop everything, also when interrupted."""
    programs = require_programs()
    data, logs = prepare_folders()
    ports = Ports()
    samples: list[Sample] = []
    try:
        async with AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(
                upstreams(programs["nginx"], data / "nginx", ports, logs)
            )
            bench = Bench(plan, programs["wrk"], data, upstream)
            subjects: list[Subject] = []
            for name in plan.subjects:
                progress(f"starting {name}")
                directory = data / name
                directory.mkdir()
                place = Place(directory, logs / f"{name}.log", ports, upstream)
                subjects.append(await stack.enter_async_context(SUBJECTS[name](place)))
                await bench.warm_up(subjects[-1])
            for number in range(plan.rounds):
                # Each round begins with another subject, so that none always follows the same neighbour.
                turn = number % len(subjects)
                for subject in subjects[turn:] + subjects[:turn]:
                    progress(f"round {number + 1} of {plan.rounds}: {subject.name}")
                    samples.append(await bench.sample(number, subject))
    finally:
        shutil.rmtree(data, ignore_errors=True)
    return samples
