"""The systems under test: how each is configured, started and addressed."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.install import HERE, require_litellm
from bench.payload import Target, target
from bench.processes import Ports, Server, clean_environment, running
from bench.upstream import Upstream

UPSTREAM_KEY = "sk-upstream-bench"
OMNIHUB_KEY = "omni_sk_bench_00000000000000000000000000000000"
LITELLM_KEY = "sk-litellm-bench"
READY_LIMIT_S = 180

FEATURES = {
    "direct": "no gateway: the load generator talks to nginx; CPU and memory are nginx's own",
    "envoy": "bare Envoy, one worker: routes every path to nginx; no key check, no limit, no log, no usage",
    "omnihub": "everything on: Envoy, key check, credit lease, routing, retries and failover, "
    "usage and price of each request, one durable journal record per answer",
    "litellm": "one worker: master key check, routing, usage and price of each request, all in memory; no "
    "database, hence no virtual keys, no budgets, nothing kept",
}


@dataclass(frozen=True)
class Subject:
    """A running system: the process tree to be charged and what to send to it."""

    name: str
    server: Server
    chat: Target
    stream: Target


@dataclass(frozen=True)
class Place:
    """What a subject is started with: its folder, its log file, its ports and the upstream behind it."""

    directory: Path
    log: Path
    ports: Ports
    upstream: Upstream


def by_path(name: str, server: Server, url: str) -> Subject:
    """Return a subject that does not look into bodies: JSON and SSE differ by path."""
    chat = target(f"{url}/v1/chat/completions", UPSTREAM_KEY, "gpt-bench")
    stream = target(f"{url}/stream/v1/chat/completions", UPSTREAM_KEY, "gpt-bench", stream=True)
    return Subject(name, server, chat, stream)


def by_model(name: str, server: Server, url: str, key: str) -> Subject:
    """Return a gateway subject: JSON and SSE differ by model, which has another base URL of the upstream."""
    path = f"{url}/v1/chat/completions"
    return Subject(
        name, server, target(path, key, "bench-chat"), target(path, key, "bench-stream", stream=True)
    )


@asynccontextmanager
async def direct(place: Place) -> AsyncIterator[Subject]:
    """Nothing in between: the upstream itself."""
    yield by_path("direct", place.upstream.server, place.upstream.url)


def envoy_configuration(port: int, upstream_port: int) -> dict[str, object]:
    """Return a static configuration: one listener, one route, one cluster."""
    prefix = "type.googleapis.com/envoy.extensions.filters"

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    manager = {
        "@type": f"{prefix}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{prefix}.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}],
                }
            ]
        },
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": address(upstream_port)}}
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {
        "static_resources": {
            "listeners": [{"name": "bench", "address": address(port), "filter_chains": [chain]}],
            "clusters": [cluster],
        }
    }


@asynccontextmanager
async def envoy(place: Place) -> AsyncIterator[Subject]:
    """Bare Envoy from the wheel that OmniHub uses too."""
    port = place.ports.take()
    configuration = place.directory / "envoy.json"
    configuration.write_text(json.dumps(envoy_configuration(port, place.upstream.port)))
    program = Path(sys.executable).parent / "envoy"
    command = [
        str(program),
        "-c",
        str(configuration),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "error",
    ]
    environment = clean_environment(place.directory, {})
    async with running(
        "envoy", command, environment=environment, directory=place.directory, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/ready", READY_LIMIT_S)
        yield by_path("envoy", server, url)


def omnihub_configuration(upstream_url: str) -> str:
    """Return omnihub.toml with one provider and model for JSON and one for SSE."""
    sections = []
    for model, provider, base in (
        ("bench-chat", "bench", "/v1"),
        ("bench-stream", "bench_stream", "/stream/v1"),
    ):
        sections.append(f"""
[providers.{provider}]
adapter = "openai"
base_url = "{upstream_url}{base}"
api_key = "{UPSTREAM_KEY}"

[models."{model}"]
route = ["{provider}/gpt-bench"]
price = {{ input_per_million = "1.00", output_per_million = "2.00" }}
""")
    return "".join(sections)


@asynccontextmanager
async def omnihub(place: Place) -> AsyncIterator[Subject]:
    """The whole of OmniHub as `make run` starts it, Envoy included, with an empty data directory."""
    port, grpc_port = place.ports.take(), place.ports.take()
    configuration = place.directory / "omnihub.toml"
    configuration.write_text(omnihub_configuration(place.upstream.url))
    settings = {
        "PORT": str(port),
        "OMNIHUB_GRPC_LISTEN": f"127.0.0.1:{grpc_port}",
        "OMNIHUB_DATA_DIR": str(place.directory / "data"),
        "OMNIHUB_CONFIG": str(configuration),
        "OMNIHUB_BOOTSTRAP_API_KEY": OMNIHUB_KEY,
        "OMNIHUB_BOOTSTRAP_CREDITS": "100000",
    }
    settings["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE.parent / "gen")])
    environment = clean_environment(place.directory, settings)
    command = [sys.executable, "-m", "services", "serve"]
    async with running(
        "omnihub", command, environment=environment, directory=HERE.parent, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/ready", READY_LIMIT_S)
        yield by_model("omnihub", server, url, OMNIHUB_KEY)


def litellm_configuration(upstream_url: str) -> dict[str, object]:
    """Return config.yaml as JSON, which is YAML.

    The upstream ignores the model's name. A name from LiteLLM's own price table saves it a twelfth of its
    CPU time: prices in the configuration, or an unknown name, make it search that table in every request.
    """
    models = [
        {
            "model_name": model,
            "litellm_params": {
                "model": "openai/gpt-4o-mini",
                "api_base": f"{upstream_url}{base}",
                "api_key": UPSTREAM_KEY,
            },
        }
        for model, base in (("bench-chat", "/v1"), ("bench-stream", "/stream/v1"))
    ]
    return {
        "model_list": models,
        "litellm_settings": {"set_verbose": False, "num_retries": 0},
        "general_settings": {"master_key": LITELLM_KEY},
    }


# The fastest of what was tried: granian used an eighth less CPU than uvicorn, the garbage collection
# threshold a little less again; httptools for uvicorn and LiteLLM's Rust switch made no difference here.
LITELLM_SETTINGS = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DONT_SHOW_FEEDBACK_BOX": "True",
    "PYTHON_GC_THRESHOLD": "20000,50,100",
}


@asynccontextmanager
async def litellm(place: Place) -> AsyncIterator[Subject]:
    """The LiteLLM proxy from PyPI in a virtual environment of its own, one worker."""
    programs = require_litellm() / "bin"
    port = place.ports.take()
    configuration = place.directory / "config.yaml"
    configuration.write_text(json.dumps(litellm_configuration(place.upstream.url)))
    command = [
        str(programs / "litellm"),
        "--config",
        str(configuration),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--num_workers", "1", "--run_granian"]
    environment = clean_environment(place.directory, LITELLM_SETTINGS)
    async with running(
        "litellm", command, environment=environment, directory=place.directory, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/health/readiness", READY_LIMIT_S)
        yield by_model("litellm", server, url, LITELLM_KEY)


SUBJECTS = {"direct": direct, "envoy": envoy, "omnihub": omnihub, "litellm": litellm}
