"""The static upstream: nginx, one worker, the same answer to every request."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.payload import completion, event_stream
from bench.processes import Server, clean_environment, running

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
    """The running nginx. `url` has no path; JSON is below /v1, SSE below /stream/v1."""

    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

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
async def static_upstream(nginx: str, directory: Path, port: int, log: Path) -> AsyncIterator[Upstream]:
    """Run nginx on `port` of the loopback address for the length of the context."""
    write_files(directory, port)
    command = [nginx, "-p", str(directory), "-c", str(directory / "nginx.conf")]
    environment = clean_environment(directory, {})
    async with running("nginx", command, environment=environment, directory=directory, log=log) as server:
        upstream = Upstream(server, port)
        await server.wait_ready(f"{upstream.url}/ready", 10)
        yield upstream
