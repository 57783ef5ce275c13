"""The upstream: nginx, one worker, one answer for each kind of request; and the server of slow streams."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.install import HERE
from bench.payload import KINDS, PACED, STATIC, Kind, models
from bench.processes import Ports, Server, clean_environment, running

CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    open_file_cache max=64;
    client_body_temp_path body;
    client_body_buffer_size 1m;
    client_max_body_size 4m;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    types {{ }}
    server {{
        listen 127.0.0.1:{port};
        root answers;
        # A static file answers only GET; the error page turns a POST into one.
        {locations}
        location ~ /v1/models$ {{ default_type application/json; return 200 '{{"data":[]}}'; }}
        location = /ready {{ return 200 'ready'; }}
        location = /status {{ stub_status; }}
    }}
    {servers}
}}
"""
# The same answers at the root of a port each, for gateways that take no path in an upstream's address.
SERVER = """
    server {{
        listen 127.0.0.1:{port};
        root answers/{name};
        location = /v1{path} {{ default_type {content_type}; error_page 405 =200 $uri; }}
        location = /v1/models {{ default_type application/json; return 200 '{models}'; }}
        location = /health {{ return 200 'ready'; }}
    }}
"""
LOCATION = "location = {path} {{ default_type {content_type}; error_page 405 =200 $uri; }}"
READY_LIMIT_S = 10


@dataclass(frozen=True)
class Upstream:
    """The running servers; `url` is nginx's, `paced_url` the server of slow streams'. Neither has a path."""

    server: Server
    pacer: Server
    port: int
    paced_port: int
    root_ports: Mapping[str, int]
    """By kind: where it is answered without a path before /v1."""

    @property
    def url(self) -> str:
        """Return where the static answers are."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def paced_url(self) -> str:
        """Return where the slow streams are."""
        return f"http://127.0.0.1:{self.paced_port}"

    def base(self, kind: Kind) -> str:
        """Return what a gateway is given as the base URL of a kind, without a version."""
        return f"{self.url if kind in STATIC else self.paced_url}/{kind.name}"

    async def requests_served(self) -> int:
        """Return how many requests nginx has taken since its start, this one included."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/status") as response:
            lines = (await response.text()).splitlines()
        return int(lines[2].split()[2])


def upstream_path(kind: Kind) -> str:
    """Return where the upstream answers a kind."""
    return f"/{kind.name}/v1{kind.upstream_path or kind.path}"


def write_files(directory: Path, port: int, root_ports: Mapping[str, int]) -> None:
    """Write the configuration and the answers into `directory`."""
    for kind in STATIC:
        file = directory / "answers" / upstream_path(kind).removeprefix("/")
        file.parent.mkdir(parents=True)
        file.write_text(kind.answer())
    locations = "\n        ".join(
        LOCATION.format(path=upstream_path(kind), content_type=kind.content_type) for kind in STATIC
    )
    servers = "".join(
        SERVER.format(
            port=root_ports[kind.name],
            name=kind.name,
            path=kind.upstream_path or kind.path,
            content_type=kind.content_type,
            models=models(kind.name),
        )
        for kind in STATIC
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(
        CONFIGURATION.format(user=user, port=port, locations=locations, servers=servers)
    )


@asynccontextmanager
async def upstreams(nginx: str, directory: Path, ports: Ports, logs: Path) -> AsyncIterator[Upstream]:
    """Run nginx and the server of slow streams on the loopback address for the length of the context."""
    port, paced_port = ports.take(), ports.take()
    root_ports = {name: ports.take() for name in KINDS}
    write_files(directory, port, root_ports)
    environment = clean_environment(directory, {})
    command = [nginx, "-p", str(directory), "-c", str(directory / "nginx.conf")]
    paced = [sys.executable, "-m", "bench.paced", f"0:{paced_port}"]
    paced += [f"{milliseconds}:{root_ports[name]}" for name, milliseconds in PACED.items()]
    async with (
        running(
            "nginx", command, environment=environment, directory=directory, log=logs / "nginx.log"
        ) as server,
        running(
            "paced", paced, environment=environment, directory=HERE.parent, log=logs / "paced.log"
        ) as pacer,
    ):
        upstream = Upstream(server, pacer, port, paced_port, root_ports)
        await server.wait_ready(f"{upstream.url}/ready", READY_LIMIT_S)
        await pacer.wait_ready(f"{upstream.paced_url}/ready", READY_LIMIT_S)
        yield upstream
