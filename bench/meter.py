"""What a stretch of load cost: CPU by process, and how much others disturbed it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.errors import BenchError
from bench.measure import machine_cpu_seconds, own_cpu_seconds
from bench.subjects.base import Running
from bench.upstream import Upstream

Values = dict[str, float]


@dataclass(frozen=True)
class Reading:
    """Counters at one moment, in seconds and requests since some start."""

    time: float
    subject: dict[str, float]
    others: float
    stolen: float
    served: int


class Meter:
    """CPU between entry and settling: of the subject's processes, and of strangers on the machine."""

    def __init__(self, running: Running, upstream: Upstream) -> None:
        self._subject = running.server.tree
        self._upstream = upstream
        trees = [upstream.server.tree, upstream.pacer.tree, self._subject]
        self._trees = {tree.root: tree for tree in trees}.values()

    async def start(self) -> None:
        """Read all counters once the subject is idle."""
        await self._subject.settle()
        self._before = await self._read()

    async def _read(self) -> Reading:
        served = await self._upstream.requests_served()
        busy, stolen = machine_cpu_seconds()
        ours = own_cpu_seconds() + sum(tree.cpu_seconds() for tree in self._trees)
        return Reading(time.monotonic(), self._subject.cpu_by_program(), busy - ours, stolen, served)

    async def stop(self, answered: int, in_flight: int = 0, *, from_upstream: bool = True) -> Values:
        """Return CPU in us per request and the noise in cores.

        The upstream must have seen every answered request, and no more than were `in_flight` beside them:
        those were worked on too, and count. Not `from_upstream`: it must have seen none.
        """
        await self._subject.settle()
        now, before = await self._read(), self._before
        served = now.served - before.served - 1
        if from_upstream and not answered <= served <= answered + in_flight:
            raise BenchError(f"{served} requests reached the upstream for {answered} answers")
        if not from_upstream and served:
            raise BenchError(
                f"{served} of {answered} requests reached the upstream: not answered from a cache"
            )
        requests = served if from_upstream else answered
        seconds = now.time - before.time
        programs = {
            name: (cpu - before.subject.get(name, 0.0)) * 1e6 / requests for name, cpu in now.subject.items()
        }
        return {
            "requests": requests,
            "cpu_us": sum(programs.values()),
            **{f"cpu_us_{name}": cpu for name, cpu in programs.items()},
            "other_programs_cores": max(0.0, (now.others - before.others) / seconds),
            "stolen_cores": (now.stolen - before.stolen) / seconds,
        }
