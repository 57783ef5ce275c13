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
from bench.streams import PACED_INTERVAL_MS, SLOW_INTERVAL_MS
from bench.upstream import Upstream

UPSTREAM_KEY = "sk-upstream-bench"
OMNIHUB_KEY = "omni_sk_bench_00000000000000000000000000000000"
LITELLM_KEY = "sk-litellm-bench"
READY_LIMIT_S = 180

FEATURES = {
    "direct": "no gateway: the load generator talks to nginx; CPU and memory are nginx's own",
    "envoy": "bare Envoy, one worker: routes every path to nginx; no key check, no limit, no log, no usage",
    "relay": "uvicorn and aiohttp, one process, no Envoy: passes bytes on and does nothing else",
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
    paced: Target
    """A stream of quick chunks, without end."""
    slow: Target
    """A stream of rare chunks, without end."""


@dataclass(frozen=True)
class Place:
    """What a subject is started with: its folder, its log file, its ports and the upstream behind it."""

    directory: Path
    log: Path
    ports: Ports
    upstream: Upstream


COMPLETIONS = "/v1/chat/completions"


def by_path(name: str, server: Server, url: str, paced_url: str = "") -> Subject:
    """Return a subject that does not look into bodies: the kinds of answer differ by path."""

    def at(base: str, *, stream: bool = True) -> Target:
        return target(base + COMPLETIONS, UPSTREAM_KEY, "gpt-bench", stream=stream)

    paced = paced_url or url
    return Subject(
        name,
        server,
        chat=at(url, stream=False),
        stream=at(f"{url}/stream"),
        paced=at(paced + paced_path(PACED_INTERVAL_MS)),
        slow=at(paced + paced_path(SLOW_INTERVAL_MS)),
    )


def paced_path(interval_ms: int) -> str:
    """Return where the paced upstream sends a chunk each so many milliseconds."""
    return f"/paced/{interval_ms}"


def by_model(name: str, server: Server, url: str, key: str) -> Subject:
    """Return a gateway subject: the kinds of answer differ by model, each with a base URL of its own."""

    def asking(model: str, *, stream: bool = True) -> Target:
        return target(url + COMPLETIONS, key, model, stream=stream)

    return Subject(
        name,
        server,
        chat=asking("bench-chat", stream=False),
        stream=asking("bench-stream"),
        paced=asking("bench-paced"),
        slow=asking("bench-slow"),
    )


def bases(upstream: Upstream) -> dict[str, str]:
    """Return the base URL behind each model of a gateway."""
    return {
        "bench-chat": f"{upstream.url}/v1",
        "bench-stream": f"{upstream.url}/stream/v1",
        "bench-paced": f"{upstream.paced_url}{paced_path(PACED_INTERVAL_MS)}/v1",
        "bench-slow": f"{upstream.paced_url}{paced_path(SLOW_INTERVAL_MS)}/v1",
    }


@asynccontextmanager
async def direct(place: Place) -> AsyncIterator[Subject]:
    """Nothing in between: the upstream itself."""
    yield by_path("direct", place.upstream.server, place.upstream.url, place.upstream.paced_url)


def envoy_configuration(port: int, upstream_port: int, paced_port: int) -> dict[str, object]:
    """Return a static configuration: one listener, two upstreams told apart by the path."""
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
                    "routes": [
                        {"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": "0s"}}
                        for prefix, cluster in (("/paced/", "paced"), ("/", "upstream"))
                    ],
                }
            ]
        },
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}

    def cluster(name: str, number: int) -> dict[str, object]:
        endpoint = {"endpoint": {"address": address(number)}}
        return {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        }

    return {
        "static_resources": {
            "listeners": [{"name": "bench", "address": address(port), "filter_chains": [chain]}],
            "clusters": [cluster("upstream", upstream_port), cluster("paced", paced_port)],
        }
    }


@asynccontextmanager
async def envoy(place: Place) -> AsyncIterator[Subject]:
    """Bare Envoy from the wheel that OmniHub uses too."""
    port = place.ports.take()
    configuration = place.directory / "envoy.json"
    configuration.write_text(
        json.dumps(envoy_configuration(port, place.upstream.port, place.upstream.paced_port))
    )
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


@asynccontextmanager
async def relay(place: Place) -> AsyncIterator[Subject]:
    """A bare relay in Python."""
    port = place.ports.take()
    command = [sys.executable, "-m", "bench.relay", str(port), place.upstream.url, place.upstream.paced_url]
    environment = clean_environment(place.directory, {})
    async with running(
        "relay", command, environment=environment, directory=HERE.parent, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/ready", READY_LIMIT_S)
        yield by_path("relay", server, url)


def omnihub_configuration(bases: dict[str, str]) -> str:
    """Return omnihub.toml with one provider per model and base URL."""
    return "".join(
        f"""
[providers.{model.replace("-", "_")}]
adapter = "openai"
base_url = "{base}"
api_key = "{UPSTREAM_KEY}"

[models."{model}"]
route = ["{model.replace("-", "_")}/gpt-bench"]
price = {{ input_per_million = "1.00", output_per_million = "2.00" }}
"""
        for model, base in bases.items()
    )


@asynccontextmanager
async def omnihub(place: Place) -> AsyncIterator[Subject]:
    """The whole of OmniHub as `make run` starts it, Envoy included, with an empty data directory."""
    port, grpc_port = place.ports.take(), place.ports.take()
    configuration = place.directory / "omnihub.toml"
    configuration.write_text(omnihub_configuration(bases(place.upstream)))
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


def litellm_configuration(bases: dict[str, str]) -> dict[str, object]:
    """Return config.yaml as JSON, which is YAML.

    The upstream ignores the model's name. A name from LiteLLM's own price table saves it a twelfth of its
    CPU time: prices in the configuration, or an unknown name, make it search that table in every request.
    """
    models = [
        {
            "model_name": model,
            "litellm_params": {
                "model": "openai/gpt-4o-mini",
                "api_base": base,
                "api_key": UPSTREAM_KEY,
            },
        }
        for model, base in bases.items()
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
    configuration.write_text(json.dumps(litellm_configuration(bases(place.upstream))))
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


SUBJECTS = {"direct": direct, "envoy": envoy, "relay": relay, "omnihub": omnihub, "litellm": litellm}
