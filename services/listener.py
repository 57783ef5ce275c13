"""The internal HTTP listener: facade routes, and what operators and the edge ask of a process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import prometheus_client
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, Router

from services.common.sockets import UNIX

# Longer than the edge keeps idle connections, so that the edge never writes into a closing one.
KEEP_ALIVE_S = 120


class _Server(uvicorn.Server):
    """A uvicorn server whose process handles signals itself."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the launcher."""
        yield

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen, and say so. Raises OSError where the base would end the process."""
        try:
            await super().startup(sockets)  # type: ignore[arg-type]
        except SystemExit:
            address = self.config.uds or f"{self.config.host}:{self.config.port}"
            raise OSError(f"no HTTP listener on {address}: set OMNIHUB_HTTP_LISTEN to a free one") from None
        self.listening.set()


class HttpListener:
    """Serves routes on `host:port` or `unix:/path`. `problems` tells what keeps requests waiting."""

    def __init__(
        self,
        listen: str,
        routes: Sequence[BaseRoute],
        problems: Callable[[], Awaitable[dict[str, str]]],
        drain_timeout_s: float,
    ) -> None:
        self._problems = problems
        own = [
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
        ]
        router = Router([*routes, *own], redirect_slashes=False)
        config = uvicorn.Config(
            router,
            **_place(listen),
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
            backlog=4096,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises OSError when the address is taken."""
        self._task = asyncio.create_task(self._server.serve())
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait({self._task, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if not self._server.listening.is_set():
            task, self._task = self._task, None
            await task

    async def stop(self) -> None:
        """Stop accepting, let responses finish."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task

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


def _place(listen: str) -> dict[str, Any]:
    """Return uvicorn's settings for `host:port` or `unix:/path`."""
    if listen.startswith(UNIX):
        return {"uds": listen.removeprefix(UNIX)}
    host, _, port = listen.rpartition(":")
    return {"host": host.strip("[]"), "port": int(port)}
