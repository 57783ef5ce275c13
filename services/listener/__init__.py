"""The internal HTTP listener: facade routes, and what operators and the edge ask of a process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import prometheus_client
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from services.common.sockets import UNIX
from services.listener.routing import Dispatcher
from services.listener.server import HttpServer


class HttpListener:
    """Serves routes on `host:port` or `unix:/path`. `problems` tells what keeps requests waiting."""

    def __init__(
        self,
        listen: str,
        routes: Sequence[BaseRoute],
        problems: Callable[[], Awaitable[dict[str, str]]],
        drain_timeout_s: float,
    ) -> None:
        self._addresses = [listen]
        self._problems = problems
        self._drain_timeout_s = drain_timeout_s
        own = [
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
        ]
        self._app = Dispatcher([*routes, *own])
        self._server: HttpServer | None = None

    def also_listen(self, address: str) -> None:
        """Serve at the Unix socket `unix:/path` too."""
        self._addresses.append(address)

    async def start(self) -> None:
        """Listen. Raises OSError when an address is taken."""
        server = HttpServer(self._app)
        for address in self._addresses:
            try:
                await _listen(server, address)
            except OSError:
                await server.stop(0)
                raise OSError(
                    f"no HTTP listener on {address}: set OMNIHUB_HTTP_LISTEN to a free one"
                ) from None
        self._server = server

    async def stop(self) -> None:
        """Stop accepting, let responses finish."""
        if self._server is not None:
            await self._server.stop(self._drain_timeout_s)

    async def _health(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def _ready(self, _: Request) -> Response:
        problems = await self._problems()
        if problems:
            return JSONResponse({"ready": False, "problems": problems}, status_code=503)
        return JSONResponse({"ready": True})

    async def _metrics(self, _: Request) -> Response:
        content = prometheus_client.generate_latest()
        return Response(content, media_type=prometheus_client.CONTENT_TYPE_LATEST)


async def _listen(server: HttpServer, address: str) -> None:
    if address.startswith(UNIX):
        await server.listen_unix(Path(address.removeprefix(UNIX)))
    else:
        host, _, port = address.rpartition(":")
        await server.listen(host.strip("[]"), int(port))
