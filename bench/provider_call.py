"""What asking a provider costs: `python -m bench.provider_call`.

Calls ProviderService in this process, against nginx with a static answer, and prints CPU (user and system)
per call: of the HTTP client alone, of the service, and of the service over the local transport; then of
streams, per request and per chunk. The least of several interleaved rounds: what the work takes when nobody
disturbs it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from omnihub.common.v1.chat_pb2 import WireFormat
from omnihub.provider.v1 import provider_service_pb2 as pb
from omnihub.provider.v1.provider_service_api import ProviderService

from bench.install import require_programs
from bench.payload import STREAM_CHUNKS, target
from bench.processes import Ports
from bench.upstream import Upstream, upstreams
from services.common.rpc import Call, Connector, Registry
from services.common.service import Infrastructure
from services.providers.app import build
from services.providers.http import Timeouts
from services.providers.server import ProviderServer
from services.providers.settings import ProviderSettings

CONNECTIONS = 8
Work = Callable[[], Awaitable[object]]


def attempt(provider: str, stream: bool) -> pb.Attempt:
    """Return what the router sends: the caller's body, limits, and the model."""
    body = target("", "", "gpt-bench-alias", stream=stream).body.encode()
    limits = pb.Timeouts(connect_ms=5000, first_token_ms=15000, idle_ms=15000, total_ms=600000)
    return pb.Attempt(
        provider=provider,
        model="gpt-bench",
        attempt_id="att_bench",
        raw_body=body,
        wire_format=WireFormat.WIRE_FORMAT_OPENAI_CHAT,
        timeouts=limits,
    )


@asynccontextmanager
async def works(upstream: Upstream) -> AsyncIterator[dict[str, Work]]:
    """Start the service; yield what is measured by name."""
    providers = {
        name: ProviderSettings.model_validate(
            {"adapter": "openai", "base_url": base, "api_key": "sk-bench-0123456789"}
        )
        for name, base in (("json", f"{upstream.url}/v1"), ("sse", f"{upstream.url}/stream/v1"))
    }
    registry = Registry()
    connector = Connector(registry, {})
    with tempfile.TemporaryDirectory() as folder:
        service = build(providers, Infrastructure(connector=connector, data_dir=Path(folder)))
        for interface, implementation in service.interfaces:
            registry.add(interface, implementation)
        await service.start()
        server: ProviderServer = service.interfaces[0][1]
        adapter = server._adapters["json"]
        local = connector.connect(ProviderService, "providers")
        chat = pb.ChatRequest(attempt=attempt("json", stream=False))
        streamed = pb.StreamChatRequest(attempt=attempt("sse", stream=True))
        limits = Timeouts(5, 15, 15, 600)
        failures = adapter.failures("gpt-bench")  # type: ignore[attr-defined]

        async def http() -> object:
            return await adapter.ask(  # type: ignore[attr-defined]
                adapter._chat_url,
                chat.attempt.raw_body,
                adapter.headers,
                limits,
                failures,  # type: ignore[attr-defined]
            )

        async def direct() -> object:
            return await server.chat(chat, call)

        async def through_local() -> object:
            return await local.chat(chat, call)

        async def stream_direct() -> object:
            return [message async for message in server.stream_chat(streamed, call)]

        async def stream_local() -> object:
            return [message async for message in local.stream_chat(streamed, call)]

        call = Call.internal(600)
        try:
            yield {
                "http": http,
                "chat": direct,
                "chat local": through_local,
                "stream": stream_direct,
                "stream local": stream_local,
            }
        finally:
            await service.stop()


async def burst(work: Work, count: int) -> float:
    """Return the CPU in us that one run takes, of `count` over several connections."""

    async def repeat() -> None:
        for _ in range(count // CONNECTIONS):
            await work()

    started = time.process_time()
    await asyncio.gather(*(repeat() for _ in range(CONNECTIONS)))
    return (time.process_time() - started) / (count // CONNECTIONS * CONNECTIONS) * 1e6


async def measure(rounds: int, count: int, only: str) -> dict[str, list[float]]:
    """Run the rounds."""
    nginx = require_programs()["nginx"]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        async with upstreams(nginx, directory, Ports(), directory) as upstream, works(upstream) as named:
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 20)
            results: dict[str, list[float]] = {}
            for number in range(rounds + 1):
                for name, work in named.items():
                    if only and name != only:
                        continue
                    per_run = await burst(work, count if number else 400)
                    if number:
                        results.setdefault(name, []).append(per_run)
            return results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.provider_call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    results = uvloop.run(measure(options.rounds, options.count, options.only))
    for name, values in results.items():
        middle = sorted(values)[len(values) // 2]
        print(f"{name:14} least {min(values):7.1f} us  median {middle:7.1f} us")
    print(json.dumps({"chunks per stream": STREAM_CHUNKS, "pid": os.getpid()}))


if __name__ == "__main__":
    main()
