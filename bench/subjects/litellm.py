"""The LiteLLM proxy from PyPI in a virtual environment of its own: one worker, as fast as we could."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.install import python_home, version_in
from bench.payload import KINDS
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

KEY = "sk-litellm-bench"
# granian used an eighth less CPU than uvicorn, the garbage collection threshold a little less again;
# httptools for uvicorn and LiteLLM's Rust switch made no difference here.
SETTINGS = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DONT_SHOW_FEEDBACK_BOX": "True",
    "PYTHON_GC_THRESHOLD": "20000,50,100",
}
# Names from LiteLLM's own price table save it a twelfth of its CPU time: prices in the configuration, or an
# unknown name, make it search that table in every request. The upstream ignores them.
MODELS = {"embeddings": "openai/text-embedding-3-small", "translated": "anthropic/claude-sonnet-4-5"}
DEFAULT_MODEL = "openai/gpt-4o-mini"


def model(name: str, served_by: str, base: str) -> dict[str, object]:
    """Return the entry of a model."""
    return {
        "model_name": name,
        "litellm_params": {"model": served_by, "api_base": base, "api_key": UPSTREAM_KEY},
    }


def configuration(upstream: Upstream, setup: Setup) -> dict[str, object]:
    """Return config.yaml as JSON, which is YAML."""
    models = []
    for kind in KINDS.values():
        # Its adapter for Anthropic adds the version itself.
        base = upstream.base(kind) if kind.name == "translated" else f"{upstream.base(kind)}/v1"
        models.append(model(f"bench-{kind.name}", MODELS.get(kind.name, DEFAULT_MODEL), base))
    chat = f"{upstream.base(KINDS['chat'])}/v1"
    models += [model(f"bench-model-{number:06d}", DEFAULT_MODEL, chat) for number in range(setup.models)]
    settings: dict[str, object] = {"set_verbose": False, "num_retries": 0}
    if setup.cache:
        settings |= {"cache": True, "cache_params": {"type": "local"}}
    return {
        "model_list": models,
        "litellm_settings": settings,
        "general_settings": {"master_key": KEY},
    }


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Running]:
    """Start one worker."""
    programs = python_home("litellm") / "bin"
    port = place.ports.take()
    file = place.directory / "config.yaml"
    file.write_text(json.dumps(configuration(place.upstream, place.setup)))
    command = [str(programs / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", "1", "--run_granian"]
    environment = clean_environment(place.directory, SETTINGS)
    async with running(
        "litellm", command, environment=environment, directory=place.directory, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/health/readiness", READY_LIMIT_S)
        yield Running(server, lambda kind: by_model(kind, url, KEY, place.setup))


NO_KEYS = "its keys need a PostgreSQL database, which this row does without"
SUBJECT = Subject(
    "litellm",
    "LiteLLM proxy from PyPI, one worker, in memory: no database, hence no virtual keys and no budgets",
    start,
    lambda: f"litellm {version_in('litellm', 'litellm')}",
    Features(
        authentication="one master key",
        routing="model list, no retries",
        usage="tokens and price of each answer, in memory",
    ),
    unable={"growth-keys": NO_KEYS, "new-keys": NO_KEYS},
)
