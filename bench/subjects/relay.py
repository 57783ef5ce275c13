"""A bare relay in Python, without Envoy."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.install import HERE
from bench.processes import clean_environment, running
from bench.subjects.base import READY_LIMIT_S, Place, Running, Subject, by_path
from bench.subjects.direct import PASSES_BYTES


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Running]:
    """Start bench/relay.py."""
    port = place.ports.take()
    command = [sys.executable, "-m", "bench.relay", str(port), place.upstream.url, place.upstream.paced_url]
    environment = clean_environment(place.directory, {})
    async with running(
        "relay", command, environment=environment, directory=HERE.parent, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/ready", READY_LIMIT_S)
        yield Running(server, lambda kind: by_path(kind, url))


SUBJECT = Subject(
    "relay",
    "uvicorn and aiohttp, one Python process, no Envoy: passes bytes on and does nothing else",
    start,
    lambda: (
        f"uvicorn {importlib.metadata.version('uvicorn')}, aiohttp {importlib.metadata.version('aiohttp')}"
    ),
    unable=PASSES_BYTES,
)
