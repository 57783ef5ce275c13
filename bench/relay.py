"""The baseline of streams, a bare relay: `python -m bench.relay PORT URL PACED_URL`.

uvicorn in front and aiohttp behind. It passes bytes on as they come and does nothing else: no key, no limit,
no parsing, no record.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import uvicorn

Message = dict[str, Any]
HOP_BY_HOP = {b"host", b"content-length", b"connection", b"transfer-encoding"}


class Relay:
    """An ASGI application that forwards every request, those below /paced to the paced upstream."""

    def __init__(self, upstream: str, paced: str) -> None:
        self._upstream = upstream
        self._paced = paced
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Relay one request."""
        if scope["type"] != "http":
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), auto_decompress=False
            )
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {
            name.decode(): value.decode() for name, value in scope["headers"] if name not in HOP_BY_HOP
        }
        path = scope["path"]
        if not path.startswith("/paced"):
            await self._forward(scope["method"], self._upstream + path, body, headers, send)
            return
        # These never end by themselves: whoever left would be served, and counted, for ever.
        forwarding = asyncio.create_task(
            self._forward(scope["method"], self._paced + path, body, headers, send)
        )
        await receive()
        forwarding.cancel()

    async def _forward(
        self,
        method: str,
        url: str,
        body: bytes,
        headers: dict[str, str],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        assert self._session is not None
        async with self._session.request(method, url, data=body, headers=headers) as response:
            passed = [(name, value) for name, value in response.raw_headers if name.lower() not in HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status, "headers": passed})
            async for data in response.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(
        Relay(sys.argv[2], sys.argv[3]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="error",
        backlog=2048,
    )
