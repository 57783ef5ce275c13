"""The Shepherd Model Gateway from PyPI, written in Rust: a router in front of inference engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from bench.install import python_home, version_in
from bench.payload import KINDS
from bench.processes import POLL_INTERVAL_S, clean_environment, running
from bench.subjects.base import READY_LIMIT_S, Features, Place, Running, Setup, Subject, by_model

ENGINES_LIMIT_S = 30


async def every_engine(url: str) -> None:
    """Wait for the engines that are not known yet: it is ready with the first."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(ENGINES_LIMIT_S):
        while True:
            async with session.get(f"{url}/v1/models") as response:
                if response.status == 200 and len((await response.json())["data"]) == len(KINDS):
                    return
            await asyncio.sleep(POLL_INTERVAL_S)


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Running]:
    """Start it with one engine for each kind of request; what counts and probes engines is off."""
    home = python_home("smg")
    port = place.ports.take()
    engines = [f"http://127.0.0.1:{engine}" for engine in place.upstream.root_ports.values()]
    command = [str(home / "bin" / "smg"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *engines, "--policy", "round_robin"]
    command += ["--disable-health-check", "--disable-retries", "--log-level", "error"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(place.ports.take())]
    environment = clean_environment(place.directory, {})
    async with running(
        "smg", command, environment=environment, directory=place.directory, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/readiness", READY_LIMIT_S)
        await every_engine(url)
        yield Running(server, lambda kind: by_model(kind, url, "none", Setup()))


NO_STATE = "has no keys, and no models but those of its engines"
SUBJECT = Subject(
    "smg",
    "Shepherd Model Gateway from PyPI, in Rust: spreads requests over inference engines of its operator's",
    start,
    lambda: f"smg {version_in('smg', 'smg')}",
    Features(routing="by model over engines, circuit breakers", usage="counted in metrics"),
    unable={
        "translated": "translates for its engines, not for other vendors",
        "cache-hit": "keeps no answers",
        "growth-keys": NO_STATE,
        "new-keys": NO_STATE,
        "growth-models": NO_STATE,
    },
)
