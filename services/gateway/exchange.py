"""One HTTP exchange: what every endpoint of the facade does before and after its own work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from starlette.types import Receive, Scope, Send

from services.common.authenticator import Authenticator
from services.common.ids import new_id
from services.common.log import RequestEvent
from services.common.rpc import Call, RpcError
from services.common.rpc.errors import InternalError, to_rpc_error
from services.common.rpc.server import credential_in
from services.common.telemetry import Traced
from services.gateway.surfaces import Surface

JSON = (b"content-type", b"application/json")

_logger = logging.getLogger(__name__)
Headers = Iterable[tuple[bytes, bytes]]


class Exchange:
    """A request that has been authenticated, and the response to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.request_id = self.headers.get("x-omnihub-request-id") or new_id("req")
        self.started = False
        self._receive = receive
        self._send = send

    async def read_body(self, limit: int) -> bytes:
        """Return the whole body. Raises RpcError BODY_TOO_LARGE as soon as it is known to be."""
        if int(self.headers.get("content-length") or 0) > limit:
            raise _too_large(limit)
        message = await self._receive()
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            return body
        chunks, size = [body], len(body)
        while message.get("more_body"):
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise asyncio.CancelledError
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limit:
                raise _too_large(limit)
        return b"".join(chunks)

    async def start(self, status: int, headers: Headers) -> None:
        """Send status and headers."""
        self.started = True
        own = (b"x-omnihub-request-id", self.request_id.encode("latin-1", "replace"))
        await self._send({"type": "http.response.start", "status": status, "headers": [own, *headers]})

    async def write(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """Send a whole JSON response."""
        length = (b"content-length", str(len(body)).encode())
        await self.start(status, [JSON, length, *headers])
        await self.write(body, more=False)

    async def _wait_until_left(self) -> None:
        await self._receive()

    def cancel_when_left(self) -> asyncio.Task[Any]:
        """Cancel the running task when the caller goes away. Cancel the returned task at the end."""
        running = asyncio.current_task()
        assert running is not None

        def left(watcher: asyncio.Task[Any]) -> None:
            if not watcher.cancelled() and watcher.exception() is None:
                running.cancel()

        watcher: asyncio.Task[Any] = asyncio.ensure_future(self._wait_until_left())
        watcher.add_done_callback(left)
        return watcher


def _too_large(limit: int) -> RpcError:
    return RpcError("BODY_TOO_LARGE", f"the body exceeds {limit} bytes; send less, or upload media as files")


Work = Callable[[Exchange, Call, RequestEvent], Awaitable[None]]


class Endpoint:
    """An ASGI application for one path: authenticates, runs `work`, writes failures as the format does."""

    def __init__(self, surface: Surface, authenticator: Authenticator, name: str, work: Work) -> None:
        self._surface = surface
        self._authenticator = authenticator
        self._name = name
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = Exchange(scope, receive, send)
        event = RequestEvent("http", self._name)
        traced = Traced(self._name, exchange.headers.get("traceparent", ""))
        outcome = "OK"
        try:
            call = await self._enter(exchange, traced.traceparent)
            event.identify(call.request_id, call.identity, call.traceparent)
            await self._work(exchange, call, event)
        except asyncio.CancelledError:
            # The caller has gone: there is nobody to answer.
            outcome = "CANCELLED"
        except Exception as error:
            visible = to_rpc_error(error)
            outcome = visible.reason
            if isinstance(visible, InternalError):
                _logger.error("request_failed %s", exchange.request_id, exc_info=error)
            if not exchange.started:
                await self._refuse(exchange, visible)
        finally:
            event.request_id = exchange.request_id
            event.finish(outcome)
            traced.end(outcome, event.fields)

    async def _enter(self, exchange: Exchange, traceparent: str) -> Call:
        credential = credential_in(exchange.headers)
        if not credential:
            raise RpcError(
                "MISSING_CREDENTIAL", "no API key: send `Authorization: Bearer omni_sk_...` or `X-API-Key`"
            )
        identity = await self._authenticator.authenticate(credential)
        if not identity.holds("chat"):
            raise RpcError(
                "PERMISSION_DENIED", "the credential lacks the scope `chat`", metadata={"scope": "chat"}
            )
        return Call(exchange.request_id, identity, traceparent=traceparent)

    async def _refuse(self, exchange: Exchange, error: RpcError) -> None:
        body = self._surface.write_error(**self._surface.error_words(error, exchange.request_id))
        headers = []
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
        if error.row.http == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await exchange.respond(error.row.http, body, headers)
