"""The Portkey gateway from npm, one Node process: stateless, the configuration travels in headers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.install import find_program, first_line, node_home, version_of_node_package
from bench.payload import Kind, Target
from bench.processes import clean_environment, running
from bench.subjects.base import READY_LIMIT_S, UPSTREAM_KEY, Features, Place, Running, Subject

PACKAGE = "@portkey-ai/gateway"


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Running]:
    """Start it without its console."""
    home = node_home("portkey")
    port = place.ports.take()
    program = home / "node_modules" / PACKAGE / "build" / "start-server.js"
    command = [find_program("node") or "node", str(program), f"--port={port}", "--headless"]
    environment = clean_environment(place.directory, {"NODE_ENV": "production"})
    async with running(
        "portkey", command, environment=environment, directory=place.directory, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/", READY_LIMIT_S)

        def target(kind: Kind) -> Target:
            headers = {
                "Authorization": f"Bearer {UPSTREAM_KEY}",
                "Content-Type": "application/json",
                "x-portkey-provider": "anthropic" if kind.name == "translated" else "openai",
                "x-portkey-custom-host": f"{place.upstream.base(kind)}/v1",
            }
            return Target(f"{url}/v1{kind.path}", kind.body("gpt-bench"), headers)

        yield Running(server, target)


NO_STATE = "keeps neither keys nor models: both travel in each request"
SUBJECT = Subject(
    "portkey",
    "Portkey gateway from npm, one Node process: passes the caller's provider key on, keeps nothing",
    start,
    lambda: (
        f"portkey {version_of_node_package('portkey', PACKAGE)}, node {first_line(['node', '--version'])}"
    ),
    Features(routing="provider and address from each request's headers; retries off"),
    unable={
        "cache-hit": "the published package has no cache: its settings are those of the hosted edition",
        "growth-keys": NO_STATE,
        "new-keys": NO_STATE,
        "growth-models": NO_STATE,
    },
)
