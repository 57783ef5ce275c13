"""The whole of OmniHub as `make run` starts it, Envoy included, with an empty data directory."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.errors import BenchError
from bench.install import HERE, first_line
from bench.payload import KINDS, Kind, Target
from bench.processes import clean_environment, running
from bench.subjects.base import (
    READY_LIMIT_S,
    UPSTREAM_KEY,
    Features,
    Place,
    Running,
    Setup,
    Subject,
    by_model,
)
from bench.upstream import Upstream

KEY = "omni_sk_bench_00000000000000000000000000000000"
PRICE = '{ input_per_million = "1.00", output_per_million = "2.00" }'
LIMITS = (
    {"measure": "requests", "window": "minute", "amount": "100000000"},
    {"measure": "credits", "window": "lifetime", "amount": "90000"},
)
"""Of the organisation: what every request is counted against, and none of them is held up by."""


def provider(name: str, base: str, adapter: str = "openai") -> str:
    """Return the section of a provider."""
    return f'[providers.{name}]\nadapter = "{adapter}"\nbase_url = "{base}"\napi_key = "{UPSTREAM_KEY}"\n'


def model(name: str, route: str, *, cache: bool = False) -> str:
    """Return the section of a model."""
    kept = 'cache = "on"\n' if cache else ""
    return f'[models."{name}"]\nroute = ["{route}"]\nprice = {PRICE}\n{kept}'


def configuration(upstream: Upstream, setup: Setup) -> str:
    """Return omnihub.toml: a provider and a model for each kind of request, and what the setup asks for."""
    sections = []
    for kind in KINDS.values():
        anthropic = kind.name == "translated"
        # The adapter for Anthropic adds the version itself.
        base = upstream.base(kind) if anthropic else f"{upstream.base(kind)}/v1"
        sections.append(provider(kind.name, base, "anthropic" if anthropic else "openai"))
        sections.append(model(f"bench-{kind.name}", f"{kind.name}/gpt-bench", cache=kind.name == "cached"))
    sections += [model(f"bench-model-{number:06d}", f"chat/gpt-{number}") for number in range(setup.models)]
    return "\n".join(sections)


def add_keys(data: Path, count: int) -> None:
    """Add keys like the first one, straight to the database: through the API 100,000 would take minutes."""
    with sqlite3.connect(data / "auth.db", timeout=30) as database:
        cursor = database.execute("SELECT * FROM api_key WHERE name = 'bootstrap'")
        names = [column[0] for column in cursor.description]
        first = dict(zip(names, cursor.fetchone(), strict=True))

        def key(number: int) -> tuple[object, ...]:
            digits = f"{number:06d}"
            secret = hashlib.sha256(f"{KEY}{digits}".encode()).hexdigest()
            own = {"key_id": f"key_bench{digits}", "secret_hash": secret, "hint": digits[-4:]}
            return tuple((first | own).values())

        places = ", ".join("?" for _ in names)
        database.executemany(
            f"INSERT INTO api_key VALUES ({places})", (key(number) for number in range(count))
        )


async def set_limits(url: str) -> None:
    """Set the limits, as an administrator does."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for terms in LIMITS:
            async with session.post(f"{url}/api/admin/limits", json={"terms": terms}) as response:
                if response.status != 200:
                    raise BenchError(f"setting a limit: {response.status} {await response.text()}")


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Running]:
    """Start it with its defaults; only the ports, the models and the credits are the harness's."""
    port = place.ports.take()
    file = place.directory / "omnihub.toml"
    file.write_text(configuration(place.upstream, place.setup))
    settings = {
        "PORT": str(port),
        "OMNIHUB_GRPC_LISTEN": f"127.0.0.1:{place.ports.take()}",
        "OMNIHUB_HTTP_LISTEN": f"127.0.0.1:{place.ports.take()}",
        "OMNIHUB_DATA_DIR": str(place.directory / "data"),
        "OMNIHUB_CONFIG": str(file),
        "OMNIHUB_BOOTSTRAP_API_KEY": KEY,
        "OMNIHUB_BOOTSTRAP_CREDITS": "100000",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parent / "gen")]),
    }
    environment = clean_environment(place.directory, settings)
    command = [sys.executable, "-m", "services", "serve"]
    async with running(
        "omnihub", command, environment=environment, directory=HERE.parent, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/ready", READY_LIMIT_S)
        await set_limits(url)
        if place.setup.keys:
            add_keys(place.directory / "data", place.setup.keys)

        def target(kind: Kind) -> Target:
            return by_model(kind, url, KEY, place.setup)

        yield Running(server, target)


SUBJECT = Subject(
    "omnihub",
    "everything on, as `make run` starts it: one Python process and its Envoy, embedded database",
    start,
    lambda: first_line(["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]),
    Features(
        authentication="hashed keys, revoked within 5 s",
        credits="lease of prepaid credits, a request limit and a budget",
        routing="plan with scores, retries, failover",
        usage="tokens and exact price of each answer",
        record="one journal record, committed before the last byte; survives kill -9",
    ),
)
