"""LM-Proxy from PyPI in a virtual environment of its own, one worker."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.install import python_home, version_in
from bench.payload import KINDS
from bench.processes import clean_environment, running
from bench.subjects.base import READY_LIMIT_S, UPSTREAM_KEY, Features, Place, Running, Setup, Subject, by_model
from bench.upstream import Upstream

KEY = "sk-lm-proxy-bench"


def configuration(port: int, upstream: Upstream, setup: Setup) -> str:
    """Return config.toml; strings of JSON are strings of TOML."""
    lines = ['host = "127.0.0.1"', f"port = {port}"]
    rules = {}
    for kind in KINDS.values():
        api = "anthropic" if kind.name == "translated" else "openai"
        base = upstream.base(kind) if api == "anthropic" else f"{upstream.base(kind)}/v1"
        lines += [f"[connections.{kind.name}]", f'api_type = "{api}"', f'api_base = "{base}"']
        lines += [f'api_key = "{UPSTREAM_KEY}"']
        rules[f"bench-{kind.name}"] = f"{kind.name}.gpt-bench"
    rules |= {f"bench-model-{number:06d}": "chat.gpt-bench" for number in range(setup.models)}
    lines += ["[routing]", *(f"{json.dumps(name)} = {json.dumps(rule)}" for name, rule in rules.items())]
    keys = [f"{KEY}{number:06d}" for number in range(setup.keys)] or [KEY]
    lines += ["[groups.default]", f"api_keys = {json.dumps(keys)}"]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Running]:
    """Start one worker."""
    programs = python_home("lm-proxy") / "bin"
    port = place.ports.take()
    file = place.directory / "config.toml"
    file.write_text(configuration(port, place.upstream, place.setup))
    command = [str(programs / "lm-proxy"), "--config", str(file)]
    environment = clean_environment(place.directory, {})
    async with running(
        "lm-proxy", command, environment=environment, directory=place.directory, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/docs", READY_LIMIT_S)
        yield Running(server, lambda kind: by_model(kind, url, KEY, place.setup))


SUBJECT = Subject(
    "lm-proxy",
    "LM-Proxy from PyPI, one worker, keys and models in its configuration file",
    start,
    lambda: f"lm-proxy {version_in('lm-proxy', 'lm-proxy')}",
    Features(authentication="a list of keys in memory", routing="model patterns"),
    unable={"cache-hit": "keeps no answers", "embeddings": "has no path for embeddings"},
)
