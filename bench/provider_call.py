"""What asking a provider costs, in process: `python -m bench.provider_call`.

ProviderService asks nginx for static answers, and the server of slow streams. Prints processor time, the
kernel's included: per request of the HTTP client alone, of the service, and of the service over the local
transport; per request of a stream that arrives at once; and per chunk of slow streams. The least of several
interleaved rounds is what the work takes when nobody disturbs it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from bench.install import require_programs
from bench.payload import KINDS
from bench.processes import Ports
from bench.upstream import Upstream, upstreams
from services.common.rpc import Call, Connector, Registry
from services.common.service import Infrastructure
from services.providers.app import build
from services.providers.http import Timeouts
from services.providers.settings import ProviderSettings

CONNECTIONS = 8
SLOW_STREAMS, SLOW_S = 100, 2
KINDS_ASKED = ("chat", "stream50", "paced50")
Ask = Callable[[], Awaitable[Any]]
Measure = Callable[[], Awaitable[float]]


def attempt(kind: str) -> pb.Attempt:
    """Return what the router sends."""
    limits = pb.Timeouts(connect_ms=5000, first_token_ms=15000, idle_ms=15000, total_ms=600000)
    return pb.Attempt(
        provider=kind,
        model="gpt-bench",
        attempt_id="att_bench",
        raw_body=KINDS[kind].body("gpt-alias").encode(),
        wire_format=WireFormat.WIRE_FORMAT_OPENAI_CHAT,
        timeouts=limits,
    )


def per_request(ask: Ask, count: int) -> Measure:
    """Return what measures the processor time of one request, in us, of `count` over some connections."""

    async def repeat() -> None:
        for _ in range(count // CONNECTIONS):
            await ask()

    async def measure() -> float:
        started = time.process_time()
        await asyncio.gather(*(repeat() for _ in range(CONNECTIONS)))
        return (time.process_time() - started) / (count // CONNECTIONS * CONNECTIONS) * 1e6

    return measure


def per_chunk(client: ProviderService, call: Call) -> Measure:
    """Return what measures the processor time of one chunk of slow streams, in us."""
    asked = pb.StreamChatRequest(attempt=attempt("paced50"))

    async def measure() -> float:
        chunks = 0
        under_way = asyncio.Event()

        async def read() -> None:
            nonlocal chunks
            async for _ in client.stream_chat(asked, call):
                chunks += 1
                if chunks == 5 * SLOW_STREAMS:
                    under_way.set()

        readers = [asyncio.create_task(read()) for _ in range(SLOW_STREAMS)]
        await under_way.wait()
        started, before = time.process_time(), chunks
        await asyncio.sleep(SLOW_S)
        cost = (time.process_time() - started) / (chunks - before) * 1e6
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        return cost

    return measure


@asynccontextmanager
async def measures(upstream: Upstream, count: int) -> AsyncIterator[dict[str, Measure]]:
    """Start the service; yield what is measured by name."""
    providers = {
        kind: ProviderSettings(
            adapter="openai", base_url=f"{upstream.base(KINDS[kind])}/v1", api_key="sk-bench-0123456789"
        )
        for kind in KINDS_ASKED
    }
    registry = Registry()
    connector = Connector(registry, {})
    with tempfile.TemporaryDirectory() as folder:
        service = build(providers, Infrastructure(connector=connector, data_dir=Path(folder)))
        for interface, implementation in service.interfaces:
            registry.add(interface, implementation)
        await service.start()
        server = service.interfaces[0][1]
        adapter = server._adapters["chat"]
        local = connector.connect(ProviderService, "providers")
        call = Call.internal(600)
        chat, stream = (
            pb.ChatRequest(attempt=attempt("chat")),
            pb.StreamChatRequest(attempt=attempt("stream50")),
        )
        body, limits, failures = (
            chat.attempt.raw_body,
            Timeouts(5, 15, 15, 600),
            adapter.failures("gpt-bench"),
        )

        async def read(stream: Any) -> None:
            async for _ in stream:
                pass

        asks: dict[str, Ask] = {
            "http": lambda: adapter.ask(adapter._chat_url, body, adapter.headers, limits, failures),
            "chat": lambda: server.chat(chat, call),
            "chat, local": lambda: local.chat(chat, call),
            "stream50": lambda: read(server.stream_chat(stream, call)),
            "stream50, local": lambda: read(local.stream_chat(stream, call)),
        }
        named = {name: per_request(ask, count) for name, ask in asks.items()}
        try:
            yield named | {"slow chunk, local": per_chunk(local, call)}
        finally:
            await service.stop()


async def run(rounds: int, count: int, only: str) -> dict[str, list[float]]:
    """Run the rounds; the first warms up."""
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        nginx = require_programs()["nginx"]
        async with (
            upstreams(nginx, directory, Ports(), directory) as upstream,
            measures(upstream, count) as named,
        ):
            # As the service does when it has started.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 20)
            for number in range(rounds + 1):
                for name, measure in named.items():
                    if only in ("", name):
                        value = await measure()
                        if number:
                            results.setdefault(name, []).append(value)
    return results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.provider_call", description=__doc__)
    parser.add_argument("--rounds", type=int, choices=range(1, 21), default=5, metavar="1..20")
    parser.add_argument("--count", type=int, choices=range(80, 40_001), default=3000, metavar="80..40000")
    parser.add_argument("--only", default="", help="one row")
    options = parser.parse_args()
    results = uvloop.run(run(options.rounds, options.count, options.only))
    print(f"{'us of CPU':18}  {'least':>6}  {'median':>6}")
    for name, values in results.items():
        print(f"{name:18}  {min(values):6.1f}  {statistics.median(values):6.1f}")


if __name__ == "__main__":
    main()
