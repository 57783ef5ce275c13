"""The Shepherd Model Gateway from PyPI, written in Rust: a router in front of inference engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.install import python_home, version_in
from bench.processes import clean_environment, running
from bench.subjects.base import READY_LIMIT_S, Features, Place, Running, Setup, Subject, by_model


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Running]:
    """Start it with one engine for each kind of request; what counts and probes engines is off."""
    home = python_home("smg")
    port = place.ports.take()
    engines = [f"http://127.0.0.1:{engine}" for engine in place.upstream.root_ports.values()]
    command = [str(home / "bin" / "smg"), "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *engines, "--enable-igw", "--policy", "round_robin"]
    command += ["--disable-health-check", "--disable-retries", "--log-level", "error"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(place.ports.take())]
    environment = clean_environment(place.directory, {})
    async with running(
        "smg", command, environment=environment, directory=place.directory, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/readiness", READY_LIMIT_S)
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
