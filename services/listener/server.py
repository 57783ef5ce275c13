"""Accepts connections, has requests answered, and stops without cutting what is under way."""

from __future__ import annotations

import asyncio
from pathlib import Path

from starlette.types import ASGIApp

from services.listener.connection import Connection
from services.listener.request import Request

BACKLOG = 4096
SWEEP_S = 1.0
# How long a cancelled handler may take to say that it was, and the caller to hear it.
FAREWELL_S = 5.0


class HttpServer:
    """Serves one ASGI application as HTTP/1.1."""

    def __init__(self, app: ASGIApp) -> None:
        self.connections: set[Connection] = set()
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[Path] = []
        self._running: set[Request] = set()
        self._sweep = self._loop.call_later(SWEEP_S, self._close_overdue)

    async def listen(self, host: str, port: int) -> None:
        """Listen on an address. Raises OSError."""
        listener = await self._loop.create_server(self._connection, host, port, backlog=BACKLOG)
        self._listeners.append(listener)

    async def listen_unix(self, path: Path) -> None:
        """Listen at a Unix socket. One left behind is replaced. Raises OSError."""
        listener = await self._loop.create_unix_server(self._connection, str(path), backlog=BACKLOG)
        self._listeners.append(listener)
        self._sockets.append(path)

    def _connection(self) -> Connection:
        return Connection(self, self._loop)

    def begin(self, request: Request) -> None:
        """Have a request answered, in a task of its own."""
        self._running.add(request)
        request.task = self._loop.create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            await request.run(self._app)
        finally:
            self._running.discard(request)
            request.forget()

    def _close_overdue(self) -> None:
        """Close connections on which nothing happens, or too slowly."""
        now = self._loop.time()
        for connection in [each for each in self.connections if each.deadline < now]:
            connection.cut_off()
        self._sweep = self._loop.call_later(SWEEP_S, self._close_overdue)

    async def stop(self, drain_timeout_s: float) -> None:
        """Accept nothing more, let responses finish within the limit, then cancel them."""
        for listener in self._listeners:
            listener.close()
        for connection in list(self.connections):
            connection.finish()
        await self._wait_for_handlers(drain_timeout_s)
        for request in self._running:
            assert request.task is not None
            request.task.cancel()
        await self._wait_for_handlers(FAREWELL_S)
        await self._wait_for_callers()
        self._sweep.cancel()
        for path in self._sockets:
            path.unlink(missing_ok=True)

    async def _wait_for_handlers(self, limit_s: float) -> None:
        if tasks := [request.task for request in self._running if request.task is not None]:
            await asyncio.wait(tasks, timeout=limit_s)

    async def _wait_for_callers(self) -> None:
        """Let callers take what has been sent to them."""
        try:
            async with asyncio.timeout(FAREWELL_S):
                while self.connections:  # noqa: ASYNC110 - the last moments of a process
                    await asyncio.sleep(0.01)
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()
