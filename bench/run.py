"""Starts everything, runs the interleaved rounds and returns the samples."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.errors import BenchError
from bench.install import WORK, require_programs
from bench.measures import Measured, Plan, Tools
from bench.processes import Ports
from bench.scenarios import SCENARIOS, Case
from bench.subjects import SUBJECTS
from bench.subjects.base import Place, Running, Setup
from bench.upstream import upstreams

LATENCY = Path("/dev/cpu_dma_latency")
FAILURES = (BenchError, OSError, TimeoutError, aiohttp.ClientError, subprocess.CalledProcessError)


@dataclass
class Sample:
    """One subject in one case and round; with `failure` in place of values where it did not do it.

    A round of -1 is before the first one.
    """

    scenario: str
    size: int
    subject: str
    round: int
    values: dict[str, float] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True)
class _Started:
    """A subject that runs, and what stops it."""

    running: Running
    stack: AsyncExitStack


def progress(text: str) -> None:
    """Tell the person who waits; standard output is for the report alone."""
    print(text, file=sys.stderr, flush=True)


def families(plan: Plan) -> Iterator[list[Case]]:
    """Yield the cases that run interleaved: those of the plain setup together, each other scenario alone."""
    cases = [case for name in plan.scenarios for case in SCENARIOS[name].cases()]
    plain = [case for case in cases if case.setup == Setup() and not case.measure.starts]
    if plain:
        yield plain
    for name in plan.scenarios:
        if others := [case for case in cases if case.scenario == name and case not in plain]:
            yield others


class Bench:
    """The subjects and the load that is put on them, one at a time."""

    def __init__(self, tools: Tools, data: Path, logs: Path, ports: Ports) -> None:
        self._tools = tools
        self._data = data
        self._logs = logs
        self._ports = ports
        self._started = 0
        self.samples: list[Sample] = []
        self._failed: set[tuple[str, int, str]] = set()

    def _place(self, subject: str, setup: Setup) -> Place:
        self._started += 1
        directory = self._data / f"{self._started}-{subject}"
        directory.mkdir()
        return Place(
            directory, self._logs / f"{directory.name}.log", self._ports, self._tools.upstream, setup
        )

    def _fail(self, case: Case, subject: str, error: BaseException, number: int = -1) -> None:
        """Keep why a subject did not do a case, and in which round, and leave it out from then on."""
        if (case.scenario, case.size, subject) not in self._failed:
            self._failed.add((case.scenario, case.size, subject))
            text = str(error) or repr(error)
            progress(f"{case.scenario}: {subject} failed: {text}")
            self.samples.append(Sample(case.scenario, case.size, subject, number, failure=text[:300]))

    def _able(self, case: Case) -> list[str]:
        """Return the subjects that can do a case and have not failed in it."""
        return [
            name
            for name in self._tools.plan.subjects
            if case.scenario not in SUBJECTS[name].unable
            and (case.scenario, case.size, name) not in self._failed
        ]

    async def run(self, cases: list[Case]) -> None:
        """Start what a family needs, run its rounds, stop it."""
        async with AsyncExitStack() as stack:
            started: dict[tuple[str, Setup], _Started] = {}
            for case in cases:
                for name in self._able(case):
                    await self._prepare(case, name, started, stack)
            for number in range(self._tools.plan.rounds):
                for case in cases:
                    for name in await self._round(case, number, started):
                        await self._start_anew(name, case, cases, started)

    async def _prepare(
        self, case: Case, name: str, started: dict[tuple[str, Setup], _Started], stack: AsyncExitStack
    ) -> None:
        """Start a subject for a case, unless it runs, and warm it up; keep why where that fails."""
        try:
            await self._begin(case, name, started, stack)
        except FAILURES as error:
            self._fail(case, name, error)

    async def _begin(
        self, case: Case, name: str, started: dict[tuple[str, Setup], _Started], stack: AsyncExitStack
    ) -> None:
        if case.measure.starts:
            return
        if (name, case.setup) not in started:
            progress(f"starting {name} for {case.scenario} {case.size or ''}")
            own = await stack.enter_async_context(AsyncExitStack())
            running = await own.enter_async_context(SUBJECTS[name].start(self._place(name, case.setup)))
            started[name, case.setup] = _Started(running, own)
        await case.measure.prepare(self._tools, started[name, case.setup].running)

    async def _start_anew(
        self, name: str, failed: Case, cases: list[Case], started: dict[tuple[str, Setup], _Started]
    ) -> None:
        """Start a subject again that failed: it may be broken for the cases that follow, which it can do."""
        before = started.pop((name, failed.setup), None)
        if before is None:
            return
        await before.stack.aclose()
        for case in cases:
            if case.setup == failed.setup and name in self._able(case):
                await self._prepare(case, name, started, before.stack)

    async def _round(self, case: Case, number: int, started: dict[tuple[str, Setup], _Started]) -> list[str]:
        """Measure every subject once, and return who failed."""
        failed: list[str] = []
        if case.measure.once and number:
            return failed
        able = self._able(case)
        # Each round begins with another subject, so that none always follows the same neighbour.
        turn = number % len(able) if able else 0
        for name in able[turn:] + able[:turn]:
            progress(
                f"round {number + 1} of {self._tools.plan.rounds}: {case.scenario} {case.size or ''} {name}"
            )
            try:
                measured = await self._measure(case, name, number, started)
            except FAILURES as error:
                self._fail(case, name, error, number)
                failed.append(name)
                continue
            sample = Sample(case.scenario, case.size, name, number, measured.values)
            sample.latencies = {
                series: [round(value, 4) for value in values] for series, values in measured.latencies.items()
            }
            self.samples.append(sample)
        return failed

    async def _measure(
        self, case: Case, name: str, number: int, started: dict[tuple[str, Setup], _Started]
    ) -> Measured:
        if not case.measure.starts:
            if (name, case.setup) not in started:
                raise BenchError("it did not start again")
            subject = started[name, case.setup].running
            subject.server.check()
            return await case.measure.run(self._tools, subject, number)
        async with SUBJECTS[name].start(self._place(name, case.setup)) as subject:
            return await case.measure.run(self._tools, subject, number)


@contextmanager
def awake(wanted: bool) -> Iterator[None]:
    """Let no core fall asleep for the length of the context: an idle one waits in a loop of the kernel's."""
    if not wanted:
        yield
        return
    try:
        file = LATENCY.open("wb", buffering=0)
    except OSError as error:
        raise BenchError(f"--awake needs root on Linux: {error}") from None
    with file:
        # The kernel keeps to a latency for as long as the file is open; 0 us leaves no time to wake up in.
        file.write(struct.pack("i", 0))
        yield


@contextmanager
def only_run() -> Iterator[None]:
    """Refuse to run beside another run of this checkout: each would spoil the other's figures and folders."""
    WORK.mkdir(exist_ok=True)
    with (WORK / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError("another run is under way here; wait until it has ended") from None
        yield


def prepare_folders(work: Path = WORK) -> tuple[Path, Path]:
    """Return an empty folder for data and one for logs.

    Both are on the disk of the repository: a temporary folder may be memory, where syncing costs nothing.
    """
    data, logs = work / "data", work / "logs"
    for folder in (data, logs):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return data, logs


async def execute(plan: Plan) -> list[Sample]:
    """Start every subject, run all rounds, stop everything, also when interrupted."""
    programs = require_programs()
    ports = Ports()
    with only_run(), awake(plan.awake):
        data, logs = prepare_folders()
        async with (
            upstreams(programs["nginx"], data / "nginx", ports, logs) as upstream,
        ):
            tools = Tools(plan, programs["wrk"], data / "wrk.lua", upstream)
            bench = Bench(tools, data, logs, ports)
            for cases in families(plan):
                await bench.run(cases)
        await asyncio.to_thread(shutil.rmtree, data, ignore_errors=True)
        return bench.samples
