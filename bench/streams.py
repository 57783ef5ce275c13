"""Slow streams: what a chunk costs on its way, and what an open stream weighs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from bench.errors import BenchError
from bench.load import require_loopback
from bench.measure import ProcessTree
from bench.payload import Target

Values = dict[str, float]

PACED_STREAMS = 200
PACED_INTERVAL_MS = 50
FEW, MANY = 100, 1000
# Streams that open at the same time; all at once would measure a queue of connections.
OPENING = 50
OPEN_LIMIT_S = 120
IDLE_S = 4
EVENT_END = b"\n\n"


class Streams:
    """Open streams of one target, read as they come."""

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session = session
        self._target = target
        self._readers: list[asyncio.Task[None]] = []
        self._gate = asyncio.Semaphore(OPENING)
        self.chunks: list[int] = []

    def open(self, count: int) -> None:
        """Begin `count` more streams."""
        for _ in range(count):
            self.chunks.append(0)
            self._readers.append(asyncio.create_task(self._read(len(self.chunks) - 1)))

    async def _read(self, index: int) -> None:
        async with self._gate:
            response = await self._session.post(
                self._target.url, data=self._target.body.encode(), headers=self._target.headers
            )
        async with response:
            if response.status != 200:
                body = await response.read()
                raise BenchError(f"{self._target.url} answered {response.status}: {body[:500]!r}")
            async for data in response.content.iter_any():
                self.chunks[index] += data.count(EVENT_END)
        raise BenchError(f"{self._target.url} ended a stream that has no end")

    def check(self) -> None:
        """Raise when a stream has failed or ended."""
        for reader in self._readers:
            if reader.done():
                reader.result()

    async def until_each_has(self, chunks: int) -> None:
        """Return once every stream has brought that many chunks."""
        until = time.monotonic() + OPEN_LIMIT_S
        while min(self.chunks) < chunks:
            self.check()
            if time.monotonic() > until:
                late = sum(count < chunks for count in self.chunks)
                raise BenchError(
                    f"{late} of {len(self.chunks)} streams were not served within {OPEN_LIMIT_S} s"
                )
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Leave all streams."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


@asynccontextmanager
async def streams(target: Target) -> AsyncIterator[Streams]:
    """Open no stream yet, and leave all of them at the end."""
    require_loopback(target)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        opened = Streams(session, target)
        try:
            yield opened
        finally:
            await opened.close()


async def chunk_cost(tree: ProcessTree, target: Target, seconds: float) -> Values:
    """Return the CPU of passing chunks through, in us per chunk, opening and closing left out."""
    async with streams(target) as opened:
        opened.open(PACED_STREAMS)
        await opened.until_each_has(5)
        before, chunks = tree.cpu_seconds(), sum(opened.chunks)
        await asyncio.sleep(seconds)
        cpu, passed = tree.cpu_seconds() - before, sum(opened.chunks) - chunks
        opened.check()
    sent = PACED_STREAMS * seconds / PACED_INTERVAL_MS * 1000
    return {
        "chunks": passed,
        # Below 1 the subject could not keep up.
        "chunks_passed_share": passed / sent,
        "cpu_us_per_chunk": cpu * 1e6 / passed,
    }


async def stream_weight(tree: ProcessTree, target: Target) -> Values:
    """Return how many KiB of memory (PSS) each further open stream takes, in Envoy and in all else."""
    async with streams(target) as opened:
        opened.open(FEW)
        await opened.until_each_has(2)
        few = tree.memory_by_program()
        began = time.monotonic()
        opened.open(MANY - FEW)
        await opened.until_each_has(2)
        seconds = time.monotonic() - began
        many = tree.memory_by_program()
        cpu, total = tree.cpu_seconds(), sum(opened.chunks)
        await asyncio.sleep(IDLE_S)
        idle_cpu, passed = tree.cpu_seconds() - cpu, sum(opened.chunks) - total
        opened.check()
    growth = {name: (many[name] - few.get(name, 0)) / 1024 / (MANY - FEW) for name in many}
    return {
        "opened_per_s": (MANY - FEW) / seconds,
        "idle_cpu_ms_per_s": idle_cpu * 1000 / IDLE_S,
        "idle_chunks_per_s": passed / IDLE_S,
        "memory_mib": sum(many.values()) / 1024**2,
        "kib_per_stream": sum(value for name, value in growth.items() if name != "envoy"),
        "envoy_kib_per_stream": growth.get("envoy", 0.0),
    }
