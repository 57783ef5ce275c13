"""The static upstream: nginx, one worker, the same answer to every request."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.install import HERE
from bench.payload import completion, event_stream
from bench.processes import Ports, Server, clean_environment, running

CONFIGURATION = """
{user}
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    open_file_cache max=16;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    types {{ }}
    server {{
        listen 127.0.0.1:{port};
        root answers;
        # A static file answers only GET; the error page turns a POST into one.
        location = /v1/chat/completions {{ default_type application/json; error_page 405 =200 $uri; }}
        location = /stream/v1/chat/completions {{ default_type text/event-stream; error_page 405 =200 $uri; }}
        location ~ /v1/models$ {{ default_type application/json; return 200 '{{"data":[]}}'; }}
        location = /ready {{ return 200 'ready'; }}
        location = /status {{ stub_status; }}
    }}
}}
"""


class Upstream:
    """The running nginx. `url` has no path; JSON is below /v1, SSE below /stream/v1.

    `paced_url` is the server of slow streams, below /paced/<milliseconds>.
    """

    def __init__(self, server: Server, port: int, paced_port: int) -> None:
        self.server = server
        self.port = port
        self.paced_port = paced_port
        self.url = f"http://127.0.0.1:{port}"
        self.paced_url = f"http://127.0.0.1:{paced_port}"

    async def requests_served(self) -> int:
        """Return how many requests nginx has taken since its start, this one included."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/status") as response:
            lines = (await response.text()).splitlines()
        return int(lines[2].split()[2])


def write_files(directory: Path, port: int) -> None:
    """Write the configuration and the two answers into `directory`."""
    for path, text in (("v1", completion()), ("stream/v1", event_stream())):
        folder = directory / "answers" / path / "chat"
        folder.mkdir(parents=True)
        (folder / "completions").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(CONFIGURATION.format(user=user, port=port))


@asynccontextmanager
async def upstreams(nginx: str, directory: Path, ports: Ports, logs: Path) -> AsyncIterator[Upstream]:
    """Run nginx and the server of slow streams on the loopback address for the length of the context."""
    port, paced_port = ports.take(), ports.take()
    write_files(directory, port)
    environment = clean_environment(directory, {})
    command = [nginx, "-p", str(directory), "-c", str(directory / "nginx.conf")]
    paced = [sys.executable, "-m", "bench.paced", str(paced_port)]
    async with (
        running(
            "nginx", command, environment=environment, directory=directory, log=logs / "nginx.log"
        ) as server,
        running(
            "paced", paced, environment=environment, directory=HERE.parent, log=logs / "paced.log"
        ) as pacer,
    ):
        upstream = Upstream(server, port, paced_port)
        await server.wait_ready(f"{upstream.url}/ready", 10)
        await pacer.wait_ready(f"{upstream.paced_url}/ready", 10)
        yield upstream
